"""The wheel: its files, and the quickstart outside of the clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import COMPILE_QUICKLY, ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("gptjax-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A directory with the wheel's files, as pip installs them."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    return site


def run_outside(arguments: list[str], installed: Path, cwd: Path) -> str:
    """Standard output of Python with the installed package, in a directory without a clone."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "XLA_FLAGS": COMPILE_QUICKLY}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_the_package_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    files = [p for p in (ROOT / "gptjax").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    sources = {str(p.relative_to(ROOT)) for p in files}
    assert names == sources | {f"gptjax/configs/{path.name}" for path in CONFIGS}


def test_an_installed_wheel_finds_its_configs(installed, tmp_path):
    look = (
        "from gptjax.config.presets import load_config, preset_names, presets_dir\n"
        "print(presets_dir())\n"
        "for name in preset_names(): load_config(name); print(name)"
    )
    found = run_outside(["-c", look], installed, tmp_path).splitlines()
    assert found == [str(installed / "gptjax" / "configs"), *(path.stem for path in CONFIGS)]


@pytest.mark.slow
def test_an_installed_wheel_runs_the_quickstart(installed, tmp_path):
    few = ["--train.max-steps", "2", "--optim.warmup-steps", "1", "--train.eval-tokens", "4096"]
    run_outside(["-m", "gptjax.train", "--config", "quickstart", *few], installed, tmp_path)
    generate = ["-m", "gptjax.generate", "--prompt", "def ", "--max-new-tokens", "4"]
    assert run_outside(generate, installed, tmp_path).startswith("def ")
    where = run_outside(["-c", "import gptjax; print(gptjax.__file__)"], installed, tmp_path)
    assert Path(where.strip()) == installed / "gptjax" / "__init__.py"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs"}

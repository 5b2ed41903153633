"""What every test shares: eight virtual devices in this process, small data, subprocess runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest
from gptjax.data.preparation import prepare
from gptjax.data.sources import text_files

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The directory of real test data; skips where there is none."""
    path = Path(os.environ.get("GPTJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data in {path}: set GPTJAX_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 150 kB of text: the source of gptjax, repeated."""
    text = "\n".join(p.read_text() for p in sorted((ROOT / "gptjax").rglob("*.py")))
    path = tmp_path_factory.mktemp("text") / "gptjax.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Manifest:
    """`text_file` as bytes, in shards of 4,096 tokens so that windows cross many of them."""
    out = tmp_path_factory.mktemp("data") / "bytes"
    data = DataConfig(path=str(out), tokenizer="bytes", inputs=(str(text_file),), val_fraction=0.1)
    return prepare(data, text_files(data.inputs), shard_tokens=4096)


@pytest.fixture(scope="module")
def one_compilation_for_all(tmp_path_factory) -> Iterator[None]:
    """Let the processes of one file share compiled programs: they are the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def run_verb(verb: str, *args: object, cwd: Path, devices: int = 1) -> subprocess.CompletedProcess:
    """Run `python -m gptjax.VERB` as a user would, on so many virtual devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"gptjax.{verb}", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

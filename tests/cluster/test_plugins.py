"""A CUDA plugin that can only compile is hidden from jax; one that has its libraries is not."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from gptjax.cluster import plugins

PLUGIN = """
print("loaded")
def initialize():
    print("initialised")
"""
FIND = """
from gptjax.cluster.environment import find_devices
from gptjax.cluster.plugins import accelerator_plugins
print([device.platform for device in find_devices()])
print(sorted(accelerator_plugins()))
"""
THEN_LOAD = "from gptjax.cluster.plugins import load_gpu_compiler\nload_gpu_compiler()\n"
IS_INSTALLED = find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda12")


@pytest.fixture
def site(tmp_path) -> Path:
    """A directory with a CUDA plugin and its extension, which say that they are imported."""
    plugin, extension = tmp_path / "jax_plugins/xla_cuda12", tmp_path / "jax_cuda12_plugin"
    for directory in (plugin, extension):
        directory.mkdir(parents=True)
        (directory / "__init__.py").write_text(PLUGIN)
    return tmp_path


def run(script: str, *paths: Path, **environment: str) -> tuple[list[str], str]:
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": path, **environment},
    )  # fmt: skip
    return result.stdout.splitlines(), result.stderr


def test_jax_never_sees_a_plugin_that_only_compiles(site):
    assert run(FIND, site) == (["['cpu']", "[]"], "")


def test_a_plugin_with_its_libraries_is_loaded_as_ever(site):
    (site / "nvidia" / "cuda_runtime").mkdir(parents=True)
    said, _ = run(FIND, site)
    assert said.count("loaded") == 2
    assert said.count("initialised") == 1
    assert said[-1] == "['jax_plugins.xla_cuda12']"


def test_an_assembler_alone_is_no_library_to_run_with(site):
    (site / "nvidia" / "cuda_nvcc").mkdir(parents=True)
    assert run(FIND, site)[0] == ["['cpu']", "[]"]


def test_who_compiles_gets_it_even_after_jax_has_looked(site):
    said, errors = run(FIND + THEN_LOAD, site)
    assert said == ["['cpu']", "[]", "loaded", "initialised"]
    assert errors == ""


def test_a_compiler_loaded_at_once_registers_once(site):
    script = THEN_LOAD + "import jax\nprint(jax.devices()[0].platform)\n"
    said, _ = run(script, site, JAX_PLATFORMS="cpu")
    assert said.count("initialised") == 1
    assert said[-1] == "cpu"


def test_only_reports_are_left_out(capfd):
    with plugins.without_reports():
        for line in ("I0000 00:00 a driver", "W0000 a warning", "E0000 an error", "plain"):
            os.write(2, f"{line}\n".encode())
    assert capfd.readouterr().err.splitlines() == ["W0000 a warning", "E0000 an error", "plain"]


def test_what_a_failing_library_said_is_not_lost(capfd):
    def fails() -> None:
        with plugins.without_reports():
            os.write(2, b"E0000 why\n")
            raise ImportError

    with pytest.raises(ImportError):
        fails()
    assert capfd.readouterr().err == "E0000 why\n"


MEASURED = """
import resource
from gptjax.cluster.environment import find_devices
find_devices()
import jax, jax.numpy as jnp
x = jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.linspace(0, 1, 4096).reshape(64, 64))
print(float(x).hex())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(not IS_INSTALLED, reason="jax's CUDA plugin is not here: make setup-compile")
def test_the_extra_changes_nothing_on_processors():
    """Words at the start, results and memory, against the same jax with the plugin masked."""
    mask = "import importlib.metadata, sys\nimportlib.metadata.entry_points = lambda **_: ()\n"
    mask += "for n in ('jax_plugins', 'jax_cuda12_plugin'): sys.modules[n] = None\n"
    places = [Path(path) for path in sys.path if path and Path(path) != ROOT]
    with_it, without = (run(s + MEASURED, *places) for s in ("", mask))
    assert with_it[1] == without[1] == ""
    assert with_it[0][0] == without[0][0]
    assert abs(int(with_it[0][1]) - int(without[0][1])) < 10  # MB; it would add a hundred

"""jax's CUDA plugin on machines without a GPU, where it only compiles for GPUs elsewhere.

jax loads every plugin that it finds when it looks for devices. Without NVIDIA's libraries that of
CUDA fails with a stack trace, and if it loads it costs a hundred megabytes. A stand-in that does
nothing takes its place until somebody compiles for a GPU.
"""

import ctypes
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
LIBRARIES = ("nvidia.cuda_runtime", "nvidia.cu13")  # what the extras cuda12 and cuda13 install
DRIVER = "libcuda.so.1"
ERRORS_ONLY = "2"  # XLA's log writes what is more than a warning
STDERR = 2
REPORT = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog")


class _StandIn(ModuleType):
    """A plugin of jax that registers nothing."""

    was_asked = False

    def initialize(self) -> None:
        """Do nothing, where jax expects a plugin to register itself."""
        self.was_asked = True


def accelerator_plugins() -> set[str]:
    """The modules of jax's plugins that may bring devices; one that only compiles is left out."""
    found = {entry.value for entry in entry_points(group="jax_plugins")}
    found |= {name for name in CUDA_PLUGINS if _is_installed(name)}
    return found - set(CUDA_PLUGINS) if _compiles_only() else found


def stand_in_for_compilers() -> None:
    """Keep jax from loading a CUDA plugin that can only compile; before jax looks for devices."""
    for name in CUDA_PLUGINS:
        if name not in sys.modules and _is_installed(name) and _compiles_only():
            sys.modules[name] = _StandIn(name)


def load_gpu_compiler() -> None:
    """Let jax have its CUDA plugin after all, as a compiler; processors stay its devices.

    Call it with `JAX_PLATFORMS=cpu`, after `import_jax`. From then on XLA writes only errors.
    """
    import jax

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", ERRORS_ONLY)
    with _without_information():
        for name in CUDA_PLUGINS:
            stand_in = sys.modules.get(name)
            if isinstance(stand_in, _StandIn):
                del sys.modules[name]
                plugin = importlib.import_module(name)
                if stand_in.was_asked:  # jax asks only once
                    plugin.initialize()
        jax.devices()


@contextmanager
def _without_information() -> Iterator[None]:
    """Leave out what libraries report before they know which messages are wanted.

    They write to the file descriptor; everything but reports follows at the end.
    """
    sys.stderr.flush()
    before = os.dup(STDERR)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)
            written.seek(0)
            for line in written:
                if not REPORT.match(line):
                    os.write(STDERR, line)


def _compiles_only() -> bool:
    """Whether neither NVIDIA's libraries nor a driver are here, so that CUDA can run nothing."""
    if any(_is_installed(name) for name in LIBRARIES):
        return False
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return True
    return False


def _is_installed(name: str) -> bool:
    if name in sys.modules:  # perhaps the stand-in, which has no spec
        return True
    return find_spec(name.partition(".")[0]) is not None and find_spec(name) is not None

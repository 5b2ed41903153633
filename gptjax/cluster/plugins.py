"""jax's CUDA plugin on machines without a GPU, where it only compiles for GPUs elsewhere.

jax loads parts of every such plugin when it is imported, and the rest when it looks for devices.
Without NVIDIA's libraries that ends in a stack trace, and even where it does not, it costs a
hundred megabytes and messages about drivers. So the plugin is hidden from jax until somebody
compiles for a GPU.
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
EXTENSIONS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
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


def hide_gpu_compiler() -> None:
    """Keep jax from loading a CUDA plugin that can only compile; call it before importing jax."""
    found = [n for n in (*CUDA_PLUGINS, *EXTENSIONS) if n not in sys.modules and _is_installed(n)]
    if found and _compiles_only():
        # None makes an import fail as if the module were not installed; jax expects that of
        # extensions, but complains about plugins
        hidden = {name: _StandIn(name) if name in CUDA_PLUGINS else None for name in found}
        sys.modules.update(hidden)  # pyright: ignore[reportCallIssue, reportArgumentType]


def load_gpu_compiler() -> None:
    """Load jax's CUDA plugins, hidden or not. Call it with `JAX_PLATFORMS=cpu`."""
    for name in EXTENSIONS:
        if sys.modules.get(name, name) is None:
            del sys.modules[name]
    for name in CUDA_PLUGINS:
        stand_in = sys.modules.get(name)
        if isinstance(stand_in, _StandIn):
            del sys.modules[name]
        if _is_installed(name):
            plugin = importlib.import_module(name)
            if isinstance(stand_in, _StandIn) and stand_in.was_asked:  # jax asks only once
                plugin.initialize()


@contextmanager
def without_reports() -> Iterator[None]:
    """Leave out what C++ libraries report while they are loaded, but no warning and no error.

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
    if sys.modules.get(name) is not None:  # perhaps a stand-in, which has no spec
        return True
    if name in sys.modules:
        return False
    return find_spec(name.partition(".")[0]) is not None and find_spec(name) is not None

"""XLA's cache and options, and an allocator that keeps freed memory from step to step."""

import ctypes
import hashlib
import os
import platform
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.sharding import Mesh

from gptjax.cluster.environment import find_devices
from gptjax.cluster.plugins import accelerator_plugins
from gptjax.cluster.watchdog import Watchdog
from gptjax.model.places import FSDP

LARGEST_CACHE = 8 * 2**30  # bytes; GPT-2's step on a GPU takes about ten million
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h
NEVER = -1  # a threshold in bytes, which glibc reads as the largest there is
ARENA_BYTES = 2**26  # bytes a glibc pool takes from the kernel at a time, unless it is the main one
LARGE = 2**24  # parameters; the gradients alone fill a pool then
REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
O1 = 19  # the number by which jax takes the level as an option of one program
HIT = "/jax/compilation_cache/cache_hits"


def enable_compilation_cache() -> Path | None:
    """Make jax keep every compiled program on disk; returns the directory, or None without one.

    `JAX_COMPILATION_CACHE_DIR` wins if it is set. Otherwise every type of processor has a
    directory, because a program compiled for a newer one may crash on an older one that shares the
    home directory. If the directory cannot be written, a note on standard error says so, and jax
    still reads the programs in it.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if "://" in chosen:  # not a directory on a disk
        return Path(chosen)
    directory = None
    try:
        directory = Path(chosen) if chosen else _cache_home() / "gptjax" / "xla" / host_tag()
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
        if not chosen:
            _prune(directory, LARGEST_CACHE)
    except (OSError, RuntimeError) as error:
        print(f"note: compiled programs are not kept for the next start: {error}", file=sys.stderr)
        if directory is None or not directory.is_dir():
            return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def _cache_home() -> Path:
    """The user's cache directory (XDG base directory specification)."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"


def host_tag(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A name for this type of processor; machines of one name can share compiled programs."""
    kinds = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    known = {line for line in lines if line.startswith(kinds)} or {platform.processor()}
    digest = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _prune(directory: Path, largest: int) -> None:
    """Delete the least recently used programs until at most `largest` bytes are left.

    jax's own limit needs another package and a lock around every access, and it stops caching once
    a process has been killed between the two files of an entry. A process that was about to read a
    deleted program compiles it again.
    """
    found = []
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # another process may delete it
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= largest:
            return
        path.unlink(missing_ok=True)
        total -= size


class CacheUse:
    """Whether the programs compiled within `watching_cache` came from the cache."""

    def __init__(self) -> None:
        self.requests = self.hits = 0

    def __str__(self) -> str:
        directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        if not self.requests or directory is None:
            return "off"
        return "yes" if self.hits == self.requests else "no"

    def _note(self, event: str, **_: str | int) -> None:
        self.requests += event == REQUEST
        self.hits += event == HIT


@contextmanager
def watching_cache() -> Iterator[CacheUse]:
    """Count the requests to jax's persistent cache, and the hits."""
    use = CacheUse()
    listener = use._note
    jax.monitoring.register_event_listener(listener)
    try:
        yield use
    finally:
        jax.monitoring.unregister_event_listener(listener)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """XLA's options for a step on the devices of a mesh, beyond its defaults: docs/performance.md.

    The devices may be absent ones, for which a program is only compiled.

    On CPUs XLA would reorder operations to run more of them at once, which costs a tenth or more of
    a step's memory and saves no time. On GPUs it would compute parts of a step twice once the step
    needs more than 76% of the memory, although the pool has 92%; `model.remat` chooses such parts
    better. With `fsdp` over several GPUs it takes level O1, which doubles the loops over layers, so
    that weights arrive without copies while the layer before computes; before jax 0.11 that would
    cost a fifth of the memory. A level that the user has set stays.
    """
    kind = mesh.devices.flat[0].platform
    if kind == "cpu":
        return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    if kind != "gpu":
        return {}
    options: dict[str, Any] = {"xla_disable_hlo_passes": "rematerialization"}
    level = jax.config.jax_optimization_level  # pyright: ignore[reportAttributeAccessIssue]
    if mesh.shape[FSDP] > 1 and level == "UNKNOWN" and jax.__version_info__ >= (0, 11):
        options["optimization_level"] = O1
    return options


def start_devices(
    cpu_devices: int, parameters: int, stall_seconds: int = 0, process: int = 0
) -> None:
    """Let jax find its devices; `parameters` is the model's size. Raises `EnvironmentProblem`.

    A driver that does not answer for so many seconds ends this process; 0 waits for ever.
    """
    divide_processor(cpu_devices)
    keep_freed_memory(parameters)
    with closing(Watchdog(stall_seconds, process)) as dog, dog.watching("no device was found"):
        find_devices()


def divide_processor(devices: int) -> None:
    """Make the CPU count as `devices` devices, unless the environment sets their number.

    Each then computes its share of a small batch alone. A single device would split every operation
    between the cores and wait for both, some 500 times a step. If jax has found its devices before,
    for another run in the same process, they stay as they are, and a note says so.
    """
    is_told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices <= 1 or is_told or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        if (found := jax.local_device_count()) != devices:
            print(
                f"note: train.cpu_devices {devices} comes too late: jax has {found} already. "
                "Restart Python to change that",
                file=sys.stderr,
            )


def keep_freed_memory(parameters: int) -> bool:
    """Make glibc keep large freed blocks; returns whether it will.

    XLA allocates its temporary buffers anew in every step. glibc would get blocks of this size from
    the kernel and give them back, so each step would touch fresh pages and pay a page fault for
    each: a quarter of a small model's step on CPUs. If glibc keeps them, the same pages serve every
    step, and the process stays as large as it once was. glibc keeps an empty pool as well. Every
    pool but the first ends at 64 MB, and larger blocks would come from the kernel after all, so all
    threads share the first pool. With few `parameters` they would wait for each other there, and
    get a second one.

    This works only if steps run on CPUs, with a glibc that accepts thresholds this large (2.35);
    elsewhere it does nothing. Call it before jax starts its threads.
    """
    if sys.platform != "linux" or accelerator_plugins():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # the trim threshold alone would end glibc's adaptive thresholds and make things worse
    if not (mallopt(M_MMAP_THRESHOLD, NEVER) and mallopt(M_TRIM_THRESHOLD, NEVER)):
        return False
    pools = 1 if parameters > LARGE else 2
    return bool(mallopt(M_TOP_PAD, ARENA_BYTES) and mallopt(M_ARENA_MAX, pools))

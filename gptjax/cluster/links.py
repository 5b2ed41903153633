"""Measures the links between devices before a run, and advises if they are slow.

A separate thread times one reduction as large as a bucket of gradients. If devices cannot reach
each other, NCCL waits forever in that thread, and the main thread can still say so.
"""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import Empty, Queue
from threading import Thread

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec

from gptjax.base.errors import UserError
from gptjax.cluster.agreement import max_over_processes
from gptjax.cluster.devices import peak_tokens_per_second, typical_mfu
from gptjax.config import Config
from gptjax.model.size import parameter_count

PROBE_BYTES = 2**26  # reduced by each device; NCCL is near its full rate from this size on
REPEATS = 5
LINK_SECONDS = 180.0  # for compiling, connecting and reducing
SLOW = 20e9  # bytes a second of bus bandwidth: PCIe 4.0 x16 gives some 20, NVLink hundreds
LARGEST_SHARE = 0.1  # that its one reduction should take of a step's computation
AXIS = "device"


class LinkError(UserError):
    """The devices do not reach each other; another start may succeed."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


def check_links(config: Config) -> list[str]:
    """Lines about the devices and their links; none for a single device.

    On CPUs only the time of a tiny reduction is measured. Raises `LinkError` if a reduction over
    all devices does not come back. All processes of a run must call this.
    """
    devices, processes = jax.devices(), jax.process_count()
    if len(devices) == 1:
        return []
    seconds = connect()
    kinds = Counter(device.device_kind for device in devices)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    where = f"links    {listed} in {processes} {'process' if processes == 1 else 'processes'}"
    if devices[0].platform == "cpu":
        return [f"{where}: CPUs, all-reduce of a number {seconds * 1e3:,.1f} ms"]
    driver = nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    peers = peer_access(nvidia_smi("topo", "-p2p", "r"))
    bandwidth = within(LINK_SECONDS, partial(bus_bandwidth, PROBE_BYTES, REPEATS))
    lines = [
        f"{where}, driver {driver or 'unknown'}, peer access {peers}, "
        f"all-reduce {bandwidth / 1e9:.1f} GB/s (bus, {PROBE_BYTES >> 20} MiB a device)"
    ]
    return lines + advice(config, devices[0].device_kind, len(devices), bandwidth)


def connect(allowed: float = LINK_SECONDS) -> float:
    """Seconds of one tiny reduction over all devices, which connects them.

    Raises `LinkError` if it takes longer than `allowed`. All processes must call this.
    """

    def reduce() -> float:
        max_over_processes(0)()  # compiles, and connects the devices
        began = time.perf_counter()
        max_over_processes(0)()
        return time.perf_counter() - began

    return within(allowed, reduce)


def nvidia_smi(*arguments: str) -> str:
    """The output of nvidia-smi; empty if it is missing, fails or takes ten seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        found = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def peer_access(matrix: str) -> str:
    """`yes`, `no`, `N of M pairs` or `unknown`, from the output of `nvidia-smi topo -p2p r`.

    Its rows begin with GPU and a number; a cell is X for the GPU itself, OK, or a code for the
    reason.
    """
    rows = [line.split() for line in matrix.splitlines()]
    rows = [row for row in rows if row and row[0].startswith("GPU") and "X" in row]
    cells = [cell for row in rows for cell in row[1:] if cell != "X"]
    if not cells:
        return "unknown"
    good = cells.count("OK")
    return {len(cells): "yes", 0: "no"}.get(good, f"{good // 2} of {len(cells) // 2} pairs")


def within(seconds: float, measure: Callable[[], float]) -> float:
    """The result of `measure`; raises `LinkError` if it takes longer than `seconds`."""
    results: Queue[float | Exception] = Queue()

    def run() -> None:
        try:
            results.put(measure())
        except Exception as error:
            results.put(error)

    Thread(target=run, daemon=True, name="links").start()
    try:
        result = results.get(timeout=seconds)
    except Empty:
        raise LinkError(
            f"a reduction over all {jax.device_count()} devices did not end within {seconds:.0f} "
            "seconds. Start again with NCCL_DEBUG=INFO, which names the link; then try, one at a "
            "time: NCCL_SOCKET_IFNAME=INTERFACE (between nodes, the one that joins them), "
            "NCCL_IB_DISABLE=1, NCCL_P2P_DISABLE=1, and in a container more shared memory "
            "(--shm-size=1g) or NCCL_SHM_DISABLE=1"
        ) from None
    if isinstance(result, Exception):
        raise LinkError(f"a reduction over all devices failed: {result}") from result
    return result


def bus_bandwidth(n_bytes: int, repeats: int) -> float:
    """Bytes per second over each device's link while each device reduces `n_bytes` of float32.

    This is nccl-tests' "busbw" (its doc/PERFORMANCE.md): 2 (n - 1) / n times the bytes, over the
    shortest time. It does not depend on the number of devices.
    """
    n = jax.device_count()
    mesh = jax.make_mesh((n,), (AXIS,), (AxisType.Auto,), devices=jax.devices())
    each = PartitionSpec(AXIS)

    @partial(jax.shard_map, mesh=mesh, in_specs=each, out_specs=each)
    def reduce(x: Array) -> Array:
        mean = lax.pmean(x, AXIS)
        return lax.pcast(mean, AXIS, to="varying")

    placement = jax.NamedSharding(mesh, each)
    x = jax.jit(partial(jnp.ones, (n * n_bytes // 4,)), out_shardings=placement)()
    program = jax.jit(reduce)
    program(x).block_until_ready()  # compiles, and connects the devices
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        program(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * (n - 1) / n * n_bytes / min(times)


def advice(config: Config, kind: str, n: int, bandwidth: float) -> list[str]:
    """Advice for a run in which one reduction of the gradients takes a large share of a step.

    A step's computation is its arithmetic at the utilisation that `typical_mfu` expects. If the
    peak is unknown, links below 20 GB/s count as slow.
    """
    within = config.mesh.fsdp * config.mesh.tensor
    if within > 1 and bandwidth < SLOW:
        return [
            f"         slow links: {within} devices share a model, and its weights or activations "
            "cross them in every micro-step; try a larger --train.micro-batch, fewer devices along "
            "--mesh.fsdp and --mesh.tensor, or none with --model.remat full"
        ]
    wire_bytes, groups = 2 if config.train.wire_dtype == "bfloat16" else 4, n // within
    stored = parameter_count(config.model) * wire_bytes / within
    reducing = 2 * (groups - 1) / groups * stored / bandwidth
    peak = peak_tokens_per_second(config, kind, n) if config.model.n_vocab else None
    known = f"the gradients take {reducing * 1e3:,.0f} ms a step"
    if peak is not None:
        mfu = typical_mfu(kind).share
        share = reducing / (config.train.batch_tokens / (mfu * peak))
        known += f", {share:.0%} of its computation (at an assumed {mfu:.0%} of the peak)"
    if bandwidth >= SLOW and (peak is None or share <= LARGEST_SHARE):
        return []
    if peak is not None and share <= LARGEST_SHARE:
        return [f"         slow links, but {known}"]
    ways = ["a larger --train.batch-tokens, which takes more micro-steps for each reduction"]
    if wire_bytes == 4:
        ways.insert(0, "--train.wire-dtype bfloat16, which halves them")
    return [f"         slow links: {known}; try {', or '.join(ways)}"]

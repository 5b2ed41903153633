"""Fit a run to this machine: the attention that works, and the largest micro-batch in its memory.

Both are found by asking, never by failing: each attention is tried on a few rows, and the compiler
tells how much memory the step needs before any of it is allocated.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from gptjax.base.errors import UserError
from gptjax.base.terminal import gibibytes
from gptjax.cluster.agreement import broadcast_from_0
from gptjax.cluster.devices import HEADROOM
from gptjax.cluster.mesh import BatchLayout, batch_layout, rows_per_device
from gptjax.config import Config, ModelConfig
from gptjax.config.attention import cudnn_limits, portable
from gptjax.model.attention_trial import KERNELS, try_attention

WHOSE = {"cudnn": "cuDNN's", "pallas": "Pallas'"}
MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USE = Path("/sys/fs/cgroup/memory.current")


def choose_attention(
    model: ModelConfig,
    context: int,
    masked_by: str | None = None,
    kept: str | None = None,
    deterministic: bool = False,
) -> tuple[str, str]:
    """Choose the attention to train with; returns it, and the reason in words.

    On a GPU `auto` times everything that may work, unless what the run has `kept` from its last
    start still works. All processes take process 0's choice where it works. `masked_by` is the
    `masking_field` of the config. `deterministic` takes Pallas' attention if it works, and times
    nothing: times are others at every start, and cuDNN may add up in any order. Raises `UserError`
    if the config insists on a kernel that does not work here.
    """
    asked = model.attention
    limits = [f"it {reason}" for _, reason in cudnn_limits(model, masked_by)]

    def trial(name: str) -> float | str:
        if name == "cudnn" and limits:
            return limits[0]
        return try_attention(name, model, context, masked_by is not None)

    if asked in KERNELS:
        if isinstance(result := trial(asked), str):
            raise UserError(
                f"{WHOSE[asked]} attention does not work here: {result}\n"
                "pass --model.attention blockwise"
            )
        return asked, f"tried forward and backward: {_milliseconds(result)}"
    if asked != "auto":
        return asked, "as configured"
    names = (*KERNELS, portable(context))
    if jax.default_backend() != "gpu":
        chosen, reason = names[-1], f"no NVIDIA GPU: this is {jax.default_backend()}"
    elif deterministic:
        result = trial("pallas")
        works = broadcast_from_0(not isinstance(result, str)) and not isinstance(result, str)
        chosen = "pallas" if works else names[-1]
        reason = "train.deterministic: no kernel is chosen by its time, which costs speed"
    else:
        result = trial(kept) if kept in names else None
        # process 0's trial decides for all, or some would wait where others do not
        works = result is not None and broadcast_from_0(not isinstance(result, str))
        if not works:
            chosen, reason = _fastest({name: trial(name) for name in names})
        elif isinstance(result, float):
            chosen, reason = str(kept), f"kept from the last start: {_milliseconds(result)}"
        else:
            chosen, reason = names[-1], f"not {kept}, which works on process 0: {result}"
    if kept not in (None, "auto", chosen):
        reason += f"; changed since the last start, when it was {kept}"
    return chosen, reason


def _fastest(trials: dict[str, float | str]) -> tuple[str, str]:
    """The name of the shortest time of process 0, and all times and problems in words."""
    names = list(trials)
    times = {name: t for name, t in trials.items() if not isinstance(t, str)}
    fastest = min(times, key=times.__getitem__, default=names[-1])
    told = names[int(broadcast_from_0(names.index(fastest)))]
    chosen = told if told in times else fastest
    results = [
        f"not {WHOSE.get(name, name)}: {t}" if isinstance(t, str) else f"{name} {_milliseconds(t)}"
        for name, t in trials.items()
    ]
    return chosen, f"tried forward and backward: {'; '.join(results)}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def choose_layout(
    config: Config, groups: int, compiled: Callable[[BatchLayout], jax.stages.Compiled]
) -> tuple[BatchLayout, str | None]:
    """Choose the layout of a batch; returns it, and a note about memory for micro-batch `auto`.

    Raises `UserError` if there is none.
    """
    micro_batch = config.train.micro_batch
    if micro_batch != "auto":
        return batch_layout(config, groups, micro_batch), None
    limit = memory_limit()
    if limit is None:
        raise UserError(
            "train.micro_batch auto needs the size of a device's memory, and this device does "
            "not report it: give a number as --train.micro-batch"
        )
    limit = int(broadcast_from_0(limit))  # all processes must compile the same programs
    needs: dict[int, int] = {}

    def needed(micro_batch: int) -> int:
        needs[micro_batch] = memory_needed(compiled(batch_layout(config, groups, micro_batch)))
        return needs[micro_batch]

    chosen = largest_micro_batch(rows_per_device(config, groups), needed, limit)
    note = f"{gibibytes(needs[chosen])} of {gibibytes(limit)} a device, by the compiler"
    return batch_layout(config, groups, chosen), note


def memory_limit() -> int | None:
    """Bytes that one device may use; None if nothing reports it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu" or not MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # a container may have less than its host
        available = min(available, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USE.read_text()))
    return available // jax.local_device_count()


def gpu_memory() -> int | None:
    """Bytes that one GPU may use, the same on all processes; None on CPUs, or if unknown."""
    limit = None if jax.default_backend() == "cpu" else memory_limit()
    return None if limit is None else int(broadcast_from_0(limit))


def memory_needed(compiled: jax.stages.Compiled) -> int:
    """Bytes of memory on each device while a compiled program runs, arguments included.

    Donated arguments make room for results.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError(
            "this device's compiler does not say how much memory a program needs: give a number "
            "as --train.micro-batch"
        )
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def largest_micro_batch(
    rows: int, needed: Callable[[int], int], limit: int, guess: int | None = None
) -> int:
    """The largest divisor of `rows` for which `needed` bytes stay within the head-room of `limit`.

    `needed` compiles, so it is called rarely: memory grows almost linearly with the micro-batch, so
    the two smallest candidates tell which larger one to try first, unless there is a `guess`. If
    that one fits, the next ones are tried, because logits stop growing at a full chunk; otherwise
    the ones below are bisected. Raises `UserError` if not even one row fits.
    """
    allowed = int(limit * HEADROOM)
    candidates = [m for m in range(1, rows + 1) if rows % m == 0]
    needs: dict[int, int] = {}

    def fits(place: int) -> bool:
        if place not in needs:
            needs[place] = needed(candidates[place])
        return needs[place] <= allowed

    fitting, largest = -1, len(candidates) - 1
    if guess is not None:
        tried = max(0, sum(m <= guess for m in candidates) - 1)
    elif not fits(0):
        tried = largest = -1
    elif largest == 0:
        fitting = tried = 0
    else:
        fits(1)
        per_row = max(1, (needs[1] - needs[0]) // (candidates[1] - 1))
        likely = sum(needs[0] + (m - 1) * per_row <= allowed for m in candidates)
        fitting, tried = 0, max(1, likely - 1)
    stride: int | None = 1  # upwards, doubling, until one does not fit
    while fitting < largest:
        if fits(tried):
            fitting = tried
        else:
            largest, stride = tried - 1, None
        if stride is None:
            tried = (fitting + largest + 1) // 2
        else:
            tried, stride = min(fitting + stride, largest), 2 * stride
    if fitting < 0:
        raise UserError(
            f"a single sequence needs {gibibytes(needs[0])}, but only {gibibytes(allowed)} of "
            f"{gibibytes(limit)} is available: try --model.remat full, --train.loss-chunk-tokens "
            "512, a shorter --train.context or a smaller model"
        )
    return candidates[fitting]

"""The time of a step and of a run: arithmetic at a stated utilisation, bytes at a bandwidth.

A step does its arithmetic, then the communication that is exposed: what XLA's schedule does not run
beside arithmetic (`Transfer.hidden`), and what takes longer than all arithmetic. Whether the two
slow each other down where they overlap is not known. Arithmetic is counted as in
`gptjax.model.size`, without recomputation: state a lower utilisation if blocks are recomputed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptjax.base.errors import ConfigError
from gptjax.cluster.devices import matmul_dtype, peak_flops
from gptjax.config import Config
from gptjax.config.batches import batch_schedule, rows_problem
from gptjax.planning.finetuning import training_flops
from gptjax.planning.gpus import Gpu
from gptjax.planning.layout import AXES, ROWS, Layout
from gptjax.planning.traffic import Transfer, transfers

ALL = (*AXES, ROWS)


@dataclass(frozen=True)
class Links:
    """Bandwidths in one direction, bytes a second: within a node, and of each GPU between nodes."""

    bus: float
    network: float

    def rate(self, layout: Layout, axis: str) -> float:
        """Bandwidth of a ring along an axis.

        A ring that leaves the node shares the node's network with the rings beside it, so it has
        the network of its own devices in the node.
        """
        within = layout.within_node(axis)
        return self.bus if within == layout.size(axis) else min(self.bus, within * self.network)


@dataclass(frozen=True)
class Schedule:
    """A step and a run, in seconds."""

    flops_per_token: float
    """Model FLOPs, causal attention."""
    compute: float
    """Seconds of arithmetic in a step of the full batch."""
    sync: dict[str, float]
    """Seconds of communication in a step of the full batch, by axis."""
    exposed: float
    """Seconds of it that do not run beside arithmetic."""
    sent: float
    """Bytes that a device sends in a step of the full batch."""
    tokens: int
    """Tokens of the whole run."""
    seconds: float
    """The whole run, including smaller batches at its beginning."""
    most_seconds: float
    """The same if no communication overlapped with arithmetic."""

    @property
    def hidden(self) -> float:
        """Seconds of communication in a step of the full batch that run beside arithmetic."""
        return sum(self.sync.values()) - self.exposed

    @property
    def step(self) -> float:
        """Seconds of a step of the full batch."""
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the time spent on arithmetic."""
        return self.compute / self.step

    @property
    def worst_efficiency(self) -> float:
        """The same if no communication overlapped with arithmetic."""
        return self.compute / (self.compute + sum(self.sync.values()))

    @property
    def tokens_per_second(self) -> float:
        """Mean rate over all devices and the whole run."""
        return self.tokens / self.seconds

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.seconds / 3600

    @property
    def limit(self) -> str:
        """The slower of the two: chip or network."""
        return "chip" if self.compute >= sum(self.sync.values()) else "network"


def schedule(config: Config, layout: Layout, gpu: Gpu, links: Links, mfu: float) -> Schedule:
    """The times of a config whose micro-batch is a number, at `mfu` of the GPU's peak."""
    peak = peak_flops(gpu.kind, matmul_dtype(config.model))
    if peak is None:
        raise ConfigError([f"the peak of {gpu.name} in {matmul_dtype(config.model)} is not known"])
    flops = training_flops(config)
    compute = config.train.batch_tokens * flops / (layout.gpus * peak * mfu)
    moved = transfers(config, layout)
    sync = {axis: _seconds(moved, layout, links, axis) for axis in ALL}

    ramp, steps = batch_schedule(config), config.train.max_steps
    tokens = ramp.rows_before(steps) * config.context
    full_steps = tokens / config.train.batch_tokens
    # arithmetic and transfers in every micro-step grow with the tokens, other transfers with steps
    once = [transfer for transfer in moved if transfer.micro_steps is None]
    often = [transfer for transfer in moved if transfer.micro_steps is not None]

    def whole_run(hiding: float) -> tuple[float, float]:
        """Seconds of the run and of a step's exposed communication, behind so much arithmetic."""
        by_token, by_step = (_exposed(some, layout, links, hiding) for some in (often, once))
        return full_steps * (compute + by_token) + steps * by_step, by_token + by_step

    (seconds, exposed), (most_seconds, _) = whole_run(compute), whole_run(0.0)
    sent = sum(transfer.sent for transfer in moved)
    return Schedule(flops, compute, sync, exposed, sent, tokens, seconds, most_seconds)


def _seconds(moved: list[Transfer], layout: Layout, links: Links, axis: str) -> float:
    sent = sum(transfer.sent for transfer in moved if transfer.axis == axis)
    return sent / links.rate(layout, axis)


def _exposed(moved: list[Transfer], layout: Layout, links: Links, compute: float) -> float:
    """Seconds of communication that `compute` seconds of arithmetic do not hide."""
    seconds = [(t, t.sent / links.rate(layout, t.axis)) for t in moved]
    hidden = sum(t.hidden * taken for t, taken in seconds)
    return sum(taken for _, taken in seconds) - min(hidden, compute)


@dataclass(frozen=True)
class Scale:
    """The same run on another number of GPUs; `schedule` is None if its rows do not divide."""

    layout: Layout
    schedule: Schedule | None


def on_other_numbers(
    config: Config, layout: Layout, gpu: Gpu, links: Links, mfu: float
) -> list[Scale]:
    """The run on 1, 2, 4, ... nodes: more groups along `data`, the same batch.

    It begins within a node if the layout leaves a part of one free, and ends when there are more
    groups than rows. Micro-batches shrink if devices get fewer rows than they can hold.
    """
    rows, found = batch_schedule(config).first, []
    for gpus in _numbers(layout):
        data, rest = divmod(gpus, layout.fsdp * layout.tensor)
        wider = replace(layout, data=max(1, data))
        if not data or rest:
            continue
        if wider.groups > rows:
            break
        times = None
        if not rows_problem(config, wider.groups):
            own, held = rows // wider.groups, int(config.train.micro_batch)
            largest = next(m for m in range(min(own, held), 0, -1) if own % m == 0)
            train = replace(config.train, micro_batch=largest)
            times = schedule(replace(config, train=train), wider, gpu, links, mfu)
        found.append(Scale(wider, times))
    return found


def _numbers(layout: Layout) -> Iterator[int]:
    """Numbers of GPUs, doubling without end: whole nodes, after parts of one that is not full."""
    gpus = 1
    while layout.gpus < layout.gpus_per_node and gpus < layout.gpus_per_node:
        yield gpus
        gpus *= 2
    gpus = layout.gpus_per_node
    while True:
        yield gpus
        gpus *= 2

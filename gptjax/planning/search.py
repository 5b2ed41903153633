"""The search for plans that fit a GPU: the largest micro-batch of a layout, the fastest layout.

A step cannot use all of a device's memory: jax's pool takes a share of it, which `train` sets, and
the trainer's `auto` leaves head-room in the pool for memory that the compiler does not see.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptjax.cluster.devices import HEADROOM, POOL_SHARE
from gptjax.config import Config
from gptjax.config.attention import masking_field
from gptjax.config.batches import batch_schedule, rows_problem
from gptjax.config.chunks import loss_chunk
from gptjax.planning.gpus import Gpu
from gptjax.planning.layout import Layout
from gptjax.planning.memory import Memory, memory
from gptjax.planning.schedule import Links, Schedule, schedule

USABLE = round(POOL_SHARE * HEADROOM, 2)
ALIKE = 0.02  # share of the time: such arithmetic cannot tell smaller differences
MOST_TENSOR = 8  # with more devices than a node has, activations would cross the network


@dataclass(frozen=True)
class Plan:
    """A layout with the micro-batch that it would train with, its memory and its time."""

    config: Config
    """The config with a number as micro-batch, and the GPU's type and attention."""
    layout: Layout
    memory: Memory
    schedule: Schedule
    fits: bool


def for_gpu(config: Config, gpu: Gpu) -> Config:
    """The config as it would run on a GPU: its type, and attention and chunks in place of auto."""
    model = replace(config.model, dtype=gpu.dtype(config.model.dtype))
    attention = gpu.attention(model, config.context, masking_field(config))
    config = replace(config, model=replace(model, attention=attention))
    train = replace(config.train, loss_chunk_tokens=loss_chunk(config, gpu.pool))
    return replace(config, train=train)


def largest_planned_micro_batch(config: Config, layout: Layout, limit: float) -> int:
    """The most rows at once that need at most `limit` bytes; 0 if not even one fits.

    The number need not divide the batch. Several micro-steps are assumed.
    """

    def fits(rows: int) -> bool:
        return memory(config, layout, rows, micro_steps=2).total <= limit

    if not fits(1):
        return 0
    below, above = 1, 2
    while fits(above):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below


def chosen_micro_batch(config: Config, layout: Layout, limit: float) -> int:
    """The choice of `auto`: the largest divisor of a device's rows that fits, or 0.

    A number in `train.micro_batch` is kept, and reduced only if devices have fewer rows.
    """
    rows, wanted = batch_schedule(config).first // layout.groups, config.train.micro_batch
    divisors = [m for m in range(rows, 0, -1) if rows % m == 0]
    if wanted != "auto":
        return next(m for m in divisors if m <= wanted)
    return next((m for m in divisors if memory(config, layout, m).total <= limit), 0)


def make_plan(
    config: Config, layout: Layout, gpu: Gpu, links: Links, mfu: float, usable: float = USABLE
) -> Plan:
    """Plan a config that `for_gpu` has adapted, in one layout."""
    limit = usable * gpu.memory
    micro_batch = chosen_micro_batch(config, layout, limit)
    train = replace(config.train, micro_batch=micro_batch or 1)
    config = replace(config, train=train)
    needed = memory(config, layout, micro_batch or 1)
    times = schedule(config, layout, gpu, links, mfu)
    return Plan(config, layout, needed, times, needed.total <= limit)


def best_plan(
    config: Config, gpus: int, per_node: int, gpu: Gpu, links: Links, mfu: float, usable: float
) -> Plan | None:
    """The fastest of all layouts of `gpus` GPUs that fit; None if none fits.

    Layouts are compared as if no communication overlapped with arithmetic, because nobody has seen
    it overlap on slow links. Among those within `ALIKE` of the fastest, this takes the one that
    divides the model least.
    """
    plans = [
        make_plan(config, layout, gpu, links, mfu, usable)
        for layout in candidates(config, gpus, per_node)
    ]
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    fastest = min(plan.schedule.most_seconds for plan in fitting)
    alike = [plan for plan in fitting if plan.schedule.most_seconds <= (1 + ALIKE) * fastest]
    return min(alike, key=lambda plan: (plan.layout.fsdp * plan.layout.tensor, plan.layout.tensor))


def candidates(config: Config, gpus: int, per_node: int) -> Iterator[Layout]:
    """Every mesh that divides model and rows, with powers of two for `fsdp` and `tensor`."""
    model = config.model
    for tensor in (1, 2, 4, 8):
        if gpus % tensor or model.n_head % tensor or model.padded_vocab % tensor:
            continue
        if tensor > min(per_node, MOST_TENSOR):
            continue
        for exponent in range((gpus // tensor).bit_length()):
            fsdp = 2**exponent
            if gpus // tensor % fsdp or model.n_embd % fsdp:
                continue
            layout = Layout(gpus // tensor // fsdp, fsdp, tensor, per_node)
            if not rows_problem(config, layout.groups):
                yield layout

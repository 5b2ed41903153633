"""What is wrong with a compiled program, in words."""

from collections.abc import Callable, Iterator

from gptjax.config import Config
from gptjax.planning.kernels import ATTENTION, FLOAT32, Kernel
from gptjax.planning.overlap import Crossing
from gptjax.planning.roofline import Card, roofline_seconds

LARGE_COPY = 2**20  # bytes
SCALARS = 256  # bytes; less is latency, not traffic
SOURCE = 60  # characters of an operation's name that are shown


def findings(
    found: list[Kernel], moved: list[Crossing], card: Card, config: Config, micro_steps: int
) -> list[str]:
    """A sentence for every fault of a program; `micro_steps` is 0 if it is not a train step."""
    total = roofline_seconds(found, card)
    said = [
        *_wide_products(found, card, config, total),
        *_copies(found, card, total),
        *_loops(moved),
    ]
    if micro_steps:
        said += _twice(found, config.model.n_layer * micro_steps, card, total)
    return said


def large_copies(found: list[Kernel]) -> list[Kernel]:
    """Kernels that only move at least `LARGE_COPY` bytes, the largest total first."""
    copies = [k for k in found if k.only_moves and k.written >= LARGE_COPY]
    return sorted(copies, key=lambda k: -k.written * k.times)


def _wide_products(found: list[Kernel], card: Card, config: Config, total: float) -> Iterator[str]:
    if config.model.dtype == "float32":
        return
    wide = [kernel for kernel in found if kernel.kind == FLOAT32]
    if wide:
        yield (
            f"float32 products in a program of {config.model.dtype}: {_count(wide)}, "
            f"{_share(wide, card, total)}; {_largest(wide, lambda k: k.flops)}"
        )


def _copies(found: list[Kernel], card: Card, total: float) -> Iterator[str]:
    if copies := large_copies(found):
        moved = sum(kernel.written * kernel.times for kernel in copies)
        yield (
            f"copies of 1 MiB or more: {_count(copies)}, {moved / 2**20:,.0f} MiB in all, "
            f"{_share(copies, card, total)}; {_largest(copies, lambda k: k.written)}"
        )


def _loops(moved: list[Crossing]) -> Iterator[str]:
    looped = [
        crossing
        for crossing in moved
        if crossing.kind == "all-reduce" and crossing.is_looped and "data" in crossing.axis
    ]
    large = [crossing for crossing in looped if crossing.payload >= SCALARS]
    if large:
        sent = sum(crossing.payload * crossing.times for crossing in large)
        yield (
            f"an all-reduce over {large[0].axis} inside the loop of micro-steps: "
            f"{sum(c.times for c in large):,.0f} a step instead of one, {sent / 2**20:,.0f} MiB"
        )


def _twice(found: list[Kernel], expected: int, card: Card, total: float) -> Iterator[str]:
    for name, is_backward in (("forward", False), ("backward", True)):
        own = [k for k in found if k.kind == ATTENTION and k.is_backward == is_backward]
        runs = sum(kernel.times for kernel in own)
        kinds = len({kernel.operation for kernel in own})
        if runs > expected * max(1, kinds):
            yield (
                f"flash attention's {name} kernel runs {runs / expected:.3g} times a layer and "
                f"micro-step: {_share(own, card, total)}"
            )


def _count(kernels: list[Kernel]) -> str:
    runs = sum(kernel.times for kernel in kernels)
    return f"{runs:,.0f} run{'s' * (runs != 1)} a call"


def _share(kernels: list[Kernel], card: Card, total: float) -> str:
    seconds = sum(kernel.times * card.seconds(kernel) for kernel in kernels)
    return f"{seconds / total:.1%} of the roofline" if total else "no time"


def _largest(kernels: list[Kernel], size: Callable[[Kernel], float]) -> str:
    largest = max(kernels, key=lambda kernel: size(kernel) * kernel.times)
    return f"the largest {largest.shape[:40]} of {largest.source[-SOURCE:] or largest.name}"

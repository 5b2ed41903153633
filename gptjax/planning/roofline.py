"""The roofline of a compiled program: for every kernel the longer of its bytes and its FLOPs.

A kernel cannot take less time than its bytes need at the card's memory bandwidth, nor less than its
products need at the card's peak. The sum over all kernels bounds the time of a call from below. It
is a bound from the compiled program, never a measurement: launches, caches and the efficiency of
products are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gptjax.cluster.devices import peak_flops
from gptjax.planning.kernels import CLASSES, COLLECTIVES, Kernel
from gptjax.planning.targets import Target


@dataclass(frozen=True)
class Card:
    """What bounds a kernel: bytes a second, and FLOP/s by type of factors."""

    bandwidth: float
    peaks: dict[str, float]

    def peak(self, dtype: str) -> float:
        """FLOP/s of products with such factors; a type without units of its own is as float32."""
        return self.peaks.get(dtype, self.peaks["float32"])

    def seconds(self, kernel: Kernel) -> float:
        """The least time of one run."""
        by_flops = kernel.flops / self.peak(kernel.dtype) if kernel.flops else 0.0
        return max(kernel.bytes / self.bandwidth, by_flops)


def card_of(target: Target) -> Card:
    """The bounds of a target: bandwidth of its description, peaks of its data sheet."""
    types = ("bfloat16", "float16", "tf32", "float32")
    found = {dtype: peak_flops(target.gpu.kind, dtype) for dtype in types}
    return Card(target.bandwidth, {dtype: peak for dtype, peak in found.items() if peak})


@dataclass
class Share:
    """What the kernels of one class add up to, in one call of the program."""

    launches: float = 0
    bytes: float = 0
    flops: float = 0
    seconds: float = 0


def by_class(found: Iterable[Kernel], card: Card) -> dict[str, Share]:
    """The share of every class that has kernels.

    Collectives have no seconds: what they need of the links is another account.
    """
    shares = {kind: Share() for kind in CLASSES}
    for kernel in found:
        share = shares[kernel.kind]
        share.launches += kernel.times
        share.bytes += kernel.times * kernel.bytes
        share.flops += kernel.times * kernel.flops
        if kernel.kind != COLLECTIVES:
            share.seconds += kernel.times * card.seconds(kernel)
    return {kind: share for kind, share in shares.items() if share.launches}


def roofline_seconds(found: Iterable[Kernel], card: Card) -> float:
    """The least time of all kernels in one call, one after the other, collectives left out."""
    return sum(share.seconds for share in by_class(found, card).values())

"""How many arrays of a shape live at once in a compiled step, by compiler.

XLA reuses the memory of what nobody needs any more, in the order in which it runs kernels. CPUs and
GPUs differ in that order and in what they fuse, so they have counts of their own. For GPUs, jax
0.12 delays more kernels of straight-line code than 0.10; but 0.10 fills the arrays that a loop
over layers begins with early, often before the loop of micro-steps, and keeps them. The counts were
read from buffer assignments: of CPUs with jax 0.10.2; of GPUs with jax 0.12.0.1 and 0.10.2, for
H100, A100, B200 and RTX 4090, which hardly differ. `memory` multiplies them by shapes.

An array is [rows, T, D] in the compute type, unless its shape is given. `Arrays` are (whole,
divided by `tensor`), `Typed` are (in float32, in the compute type).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

Arrays = tuple[int, int]
Typed = tuple[int, int]


@dataclass(frozen=True)
class LiveArrays:
    """What lives at once, by remat policy, attention, micro-steps or chunks of the loss."""

    saved: Mapping[str, Arrays]
    """Arrays of a layer kept for the backward pass. none: inputs and outputs of both norms; query,
    key, value, attended, outputs of c_fc and GELU. dots: the block's input, what attention adds to
    it (on CPUs also what the MLP adds); query, key, value, attended, c_fc's output."""
    saved_keys: Mapping[str, int]
    """More of them with remat none, by attention: copies of keys and values by segment. Flash
    attention has none."""
    twice: int
    """More of them with remat none in a loop over layers: arrays kept in two shapes."""
    transient: Mapping[str, Arrays]
    """Arrays that live while one layer's gradients are formed."""
    tiles: Mapping[str, int]
    """More of them, by attention: a tile's scores, and the keys and values that it sees."""
    delayed: Mapping[str, int]
    """More of them for each layer of straight-line code, by micro-steps: the factors of products
    for kernels' gradients that run later."""
    dropped: int
    """More of them with dropout: masks, and the bits they are made from."""
    logits: Mapping[str, Typed]
    """Arrays [chunk, V], by chunks: logits, probabilities, their gradient."""
    heads: Mapping[str, Typed]
    """Arrays [V, D] while logits exist: gradient, a chunk's part of it, a copy."""
    outputs: int
    """Arrays [rows, T, D] between layers and logits while logits exist."""
    sums: int
    """Arrays like the parameters that stay during several micro-steps: the sum of gradients, and
    zeros."""
    early: int
    """Arrays like the blocks' gradients that are zeros while logits exist, in a loop over layers
    of a single micro-step."""
    sets: Mapping[str, int]
    """Arrays like the parameters in the optimizer, by micro-steps."""
    scattered: Mapping[str, int]
    """Arrays float32 [V, D] in the end, by micro-steps: gradients of looked-up rows, spread."""
    tables: int
    """Whole tables over `fsdp`, in both types, while gradients are formed."""
    turned: float
    """Share of the blocks' gradients that exist once more over `fsdp`, in another order."""
    casts_all: bool
    """Whether straight-line code casts all layers' kernels before it begins."""


CPU = LiveArrays(
    saved={"none": (4, 12), "dots": (3, 8), "block": (1, 1), "full": (1, 0)},
    saved_keys={"blockwise": 3},
    twice=0,
    transient={"none": (8, 20), "dots": (7, 12), "block": (12, 26), "full": (12, 26)},
    tiles={},
    delayed={"one": 0, "several": 0},  # straight-line code was not counted
    dropped=8,
    logits={"uncut": (3, 0), "one chunk": (2, 0), "chunks": (2, 0)},
    heads={"uncut": (1, 0), "one chunk": (2, 0), "chunks": (3, 0)},
    outputs=0,
    sums=1,
    early=0,
    sets={"one": 2, "several": 3},
    scattered={"one": 0, "several": 0},
    tables=2,
    turned=0,
    casts_all=False,
)

GPU = LiveArrays(
    saved={"none": (4, 12), "dots": (2, 8), "block": (1, 1), "full": (1, 0)},
    saved_keys={"blockwise": 3},
    twice=1,  # what was attended, by heads and as one array
    transient={"none": (4, 11), "dots": (5, 15), "block": (7, 17), "full": (8, 17)},
    tiles={"blockwise": 6},
    delayed={"one": 4, "several": 2},
    dropped=8,
    logits={"uncut": (1, 1), "one chunk": (1, 1), "chunks": (1, 1)},
    heads={"uncut": (1, 1), "one chunk": (1, 1), "chunks": (1, 1)},
    outputs=6,
    sums=1,
    early=0,
    sets={"one": 1, "several": 2},  # the update writes into its arguments
    scattered={"one": 1, "several": 2},
    tables=1,
    turned=5 / 12,  # c_fc and the attention's c_proj
    casts_all=True,
)
GPU_BEFORE_0_11 = replace(
    GPU,
    delayed={"one": 1, "several": 0},
    sums=2,
    early=2,
)


@cache
def gpu_counts() -> LiveArrays:
    """The counts for GPUs of the jax that is installed here; of the newest, if none is."""
    try:
        major, minor = version("jax").split(".")[:2]
    except PackageNotFoundError:
        return GPU
    return GPU_BEFORE_0_11 if (int(major), int(minor)) < (0, 11) else GPU

"""Causal flash attention by kernels of our own, with dropout and inside documents.

The kernels are Pallas' for NVIDIA GPUs of compute capability 8.0 or newer. Pallas interprets them
on any device, slowly, which is for tests.

Letters: B batch, T time, H heads, K head dim, N blocks of queries.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from gptjax.model.attention_products import ATTENDED
from gptjax.model.flash_kernels import backward_kernel, forward_kernel

LEAST = 16  # the smallest side of a product on tensor cores


class Tiles(NamedTuple):
    """How a kernel divides its work."""

    block: int
    """Tokens of one program."""
    tile: int
    """Tokens that it meets at once."""
    warps: int
    stages: int = 3
    """Tiles that are on their way from memory."""


# XLA's compiler for A100 and H100 spills no registers for these, in bfloat16 and TF32
FORWARD, BACKWARD = Tiles(128, 64, 8), Tiles(64, 32, 4)


def flash_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    rate: float = 0.0,
    key: Array | None = None,
    documents_BT: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Causal attention that forms no weights in memory, [B, T, H, K], of one type of float.

    >>> q = k = jnp.zeros((1, 4, 1, 16))
    >>> v = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones(16)
    >>> flash_attention(q, k, v, interpret=True)[0, :, 0, 0].tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    time, head_dim = q_BTHK.shape[1], q_BTHK.shape[3]
    forward, backward = (
        _fitted(tiles, time, head_dim, q_BTHK.dtype) for tiles in (FORWARD, BACKWARD)
    )
    block = max(forward.block, backward.block)
    beyond = -time % block  # keys that no query sees, and queries without a gradient
    wide = max(LEAST, pl.next_power_of_2(head_dim)) - head_dim
    padding = ((0, 0), (0, beyond), (0, 0), (0, wide))
    q, k, v = (jnp.pad(x, padding) for x in (q_BTHK, k_BTHK, v_BTHK))
    reach = None
    if documents_BT is not None:
        documents_BT = jnp.pad(documents_BT, ((0, 0), (0, beyond)), mode="edge")
        reach = [_reach(documents_BT, tiles.block) for tiles in (forward, backward)]
    seed = None
    if key is not None and rate:
        seed = jax.random.bits(key, (2,), jnp.uint32)
    settings = (head_dim**-0.5, 0.0 if seed is None else rate, forward, backward, interpret)
    y: Any = _flash(q, k, v, documents_BT, reach, seed, settings)
    return y[:, :time, :, :head_dim]


def _fitted(tiles: Tiles, time: int, head_dim: int, dtype: Any) -> Tiles:
    """Smaller tiles for short texts, and for heads that would not fit into the registers."""
    block = tiles.block // 2 if head_dim * np.dtype(dtype).itemsize > 128 else tiles.block
    block = min(block, max(LEAST, pl.next_power_of_2(time)))
    return tiles._replace(block=block, tile=min(tiles.tile, block))


def _reach(documents_BT: Array, block: int) -> Array:
    """For each block, where the keys begin and the queries end that share documents: [B, N, 2]."""
    blocks_BNT = documents_BT.reshape(documents_BT.shape[0], -1, block)
    least_BN, most_BN = blocks_BNT.min(2), blocks_BNT.max(2)
    overlap_BNN = (least_BN[:, :, None] <= most_BN[:, None]) & (
        least_BN[:, None] <= most_BN[:, :, None]
    )  # symmetric
    first_BN = jnp.argmax(overlap_BNN, axis=2)
    last_BN = overlap_BNN.shape[2] - 1 - jnp.argmax(overlap_BNN[:, :, ::-1], axis=2)
    return (block * jnp.stack([first_BN, last_BN + 1], 2)).astype(jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _flash(q: Array, k: Array, v: Array, documents: Any, reach: Any, seed: Any, settings: tuple):
    return _call_forward(q, k, v, documents, reach, seed, settings)[0]


def _flash_forward(
    q: Array, k: Array, v: Array, documents: Any, reach: Any, seed: Any, settings: tuple
) -> tuple[Array, tuple]:
    y, log_sum = _call_forward(q, k, v, documents, reach, seed, settings)
    y, log_sum = checkpoint_name(y, ATTENDED), checkpoint_name(log_sum, ATTENDED)
    return y, (q, k, v, documents, reach, seed, y, log_sum)


def _flash_backward(settings: tuple, saved: tuple, dy: Array) -> tuple:
    q, k, v, documents, reach, seed, y, log_sum = saved
    scale, rate, _, tiles, interpret = settings
    block, reach = tiles.block, None if reach is None else reach[1]
    # what a softmax takes off the gradient of its weights
    mean_BHT = (y.astype(jnp.float32) * dy.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    own, whole, _ = _specs(q, block)
    numbers = pl.BlockSpec((None, None, q.shape[1]), lambda i, h, b: (b, h, 0))
    gradients = pl.pallas_call(
        partial(backward_kernel, tile=tiles.tile, scale=scale, rate=rate),
        grid=_grid(q, block),
        in_specs=[whole, whole, whole, *_extra(documents, reach, seed), whole, numbers, numbers],
        out_specs=[own, own, own],
        out_shape=[jax.ShapeDtypeStruct.like(x) for x in (q, k, v)],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="flash_attention_backward",
    )(q, k, v, documents, reach, seed, dy, log_sum, mean_BHT)
    return (*gradients, None, None, None)


_flash.defvjp(_flash_forward, _flash_backward)


def _call_forward(
    q: Array, k: Array, v: Array, documents: Any, reach: Any, seed: Any, settings: tuple
) -> tuple[Array, Array]:
    """The output, and the logarithms of the sums of weights: [B, H, T]."""
    scale, rate, tiles, _, interpret = settings
    block, reach = tiles.block, None if reach is None else reach[0]
    own, whole, number = _specs(q, block)
    batch, time, heads, _ = q.shape
    varying = jax.typeof(q).manual_axis_type  # over which axes of a mesh the devices differ
    return pl.pallas_call(
        partial(forward_kernel, tile=tiles.tile, scale=scale, rate=rate),
        grid=_grid(q, block),
        in_specs=[own, whole, whole, *_extra(documents, reach, seed)],
        out_specs=[own, number],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype, manual_axis_type=varying),
            jax.ShapeDtypeStruct((batch, heads, time), jnp.float32, manual_axis_type=varying),
        ],
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="flash_attention_forward",
    )(q, k, v, documents, reach, seed)


def _grid(q_BTHK: Array, block: int) -> tuple[int, int, int]:
    """Programs: blocks, heads, rows."""
    return q_BTHK.shape[1] // block, q_BTHK.shape[2], q_BTHK.shape[0]


def _specs(q_BTHK: Array, block: int) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """A program's own block of one head, all tokens of the head, and one number a token."""
    _, time, _, width = q_BTHK.shape
    return (
        pl.BlockSpec((None, block, None, width), lambda i, h, b: (b, i, h, 0)),
        pl.BlockSpec((None, time, None, width), lambda i, h, b: (b, 0, h, 0)),
        pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i)),
    )


def _extra(documents: Any, reach: Any, seed: Any) -> list[pl.BlockSpec | None]:
    """Documents of the row, reach of the block, and the seed; None for each that is not there."""
    return [
        None
        if documents is None
        else pl.BlockSpec((None, documents.shape[1]), lambda i, h, b: (b, 0)),
        None if reach is None else pl.BlockSpec((None, None, 2), lambda i, h, b: (b, i, 0)),
        None if seed is None else pl.BlockSpec((2,), lambda i, h, b: (0,)),
    ]

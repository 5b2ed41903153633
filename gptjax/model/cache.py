"""The key-value cache: keys and values of the tokens so far, an explicit pytree in and out.

A row of the cache belongs to one sequence, which begins at position 0; positions beyond the length
of a row hold nothing that anyone sees. Attention over the cache is computed in pieces of `PIECE`
positions that are put together afterwards (Dao et al. 2023, flash-decoding). So a row's result is
the same, bit by bit, in a longer cache and whatever the other rows hold.

Letters: B rows, T query time, S positions of the cache, P a piece of them, N pieces, H heads, K
head dim.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config import ModelConfig
from gptjax.model.arguments import at_least, wide
from gptjax.model.products import materialised_on_cpu

PIECE = 128
LOWEST = -87.0  # exponentials below it are 0: float32 has no normal numbers for them
LN2 = math.log(2)
LN2_HIGH = 0.693359375  # so few bits that its product with a power is exact


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    k_BHSK: Array
    v_BHSK: Array


class Cache(NamedTuple):
    """Keys and values of all layers, and the number of tokens in each row."""

    layers: tuple[LayerCache, ...]
    lengths_B: Array


def empty_cache(
    cfg: ModelConfig, batch: int, length: int, dtype: Any = None, n_head: int | None = None
) -> Cache:
    """A cache for `batch` sequences of `length` tokens, rounded up to whole pieces.

    `dtype` is the compute type by default; `n_head` is the number of heads that are on a device.

    >>> empty_cache(ModelConfig(n_layer=2, n_head=2, n_embd=8), 3, 100).layers[0].k_BHSK.shape
    (3, 2, 128, 4)
    """
    at_least(1, batch=batch, length=length)
    shape = (batch, n_head or cfg.n_head, cache_length(length), cfg.head_dim)
    layers = tuple(
        LayerCache(*(jnp.zeros(shape, dtype or cfg.dtype) for _ in "kv"))
        for _ in range(cfg.n_layer)
    )
    return Cache(layers, jnp.zeros(batch, jnp.int32))


def cache_length(tokens: int) -> int:
    """The positions of a cache that holds so many tokens: whole pieces.

    >>> cache_length(129)
    256
    """
    return -(-tokens // PIECE) * PIECE


def resized(cache: Cache, length: int) -> Cache:
    """The same rows with room for `length` positions, more or fewer than before.

    >>> cache = empty_cache(ModelConfig(n_layer=1, n_head=2, n_embd=8), 3, 128)
    >>> resized(cache, 256).layers[0].v_BHSK.shape
    (3, 2, 256, 4)
    """

    def resize(x_BHSK: Array) -> Array:
        more = max(0, length - x_BHSK.shape[2])
        return jnp.pad(x_BHSK, ((0, 0), (0, 0), (0, more), (0, 0)))[:, :, :length]

    return cache._replace(layers=jax.tree.map(resize, cache.layers))


def append(layer: LayerCache, k_BTHK: Array, v_BTHK: Array, lengths_B: Array) -> LayerCache:
    """Write one token behind each row's last, or several into an empty cache.

    A token beyond the end of the cache is dropped.

    >>> layer = empty_cache(ModelConfig(n_layer=1, n_head=1, n_embd=2), 2, 8, "float32").layers[0]
    >>> new_BTHK = jnp.ones((2, 1, 1, 2))
    >>> append(layer, new_BTHK, new_BTHK, jnp.array([0, 3])).k_BHSK[1, 0, 2:5, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    # XLA for CPUs writes several rows in place, in a loop, but copies the cache for a single one
    rows_B = jnp.array([*range(len(lengths_B))] if len(lengths_B) > 1 else [0, 0])

    def write(x_BHSK: Array, new_BTHK: Array) -> Array:
        new_BTHK = new_BTHK.astype(x_BHSK.dtype)
        if new_BTHK.shape[1] > 1:  # a prompt
            return lax.dynamic_update_slice(x_BHSK, new_BTHK.swapaxes(1, 2), [0] * 4)
        return x_BHSK.at[rows_B, :, lengths_B[rows_B]].set(new_BTHK[rows_B, 0], mode="drop")

    return LayerCache(write(layer.k_BHSK, k_BTHK), write(layer.v_BHSK, v_BTHK))


def attend_to_cache(q_BHK: Array, layer: LayerCache, lengths_B: Array) -> Array:
    """Attention of the token at position `lengths_B` of each row, [B, H, K].

    The same function of the same tokens as `attention.attend`, for one query. Scores and softmax
    are float32.

    >>> layer = empty_cache(ModelConfig(n_layer=1, n_head=2, n_embd=8), 3, 100).layers[0]
    >>> attend_to_cache(jnp.ones((3, 2, 4)), layer, jnp.array([0, 5, 99])).shape
    (3, 2, 4)
    """
    k_BHNPK, v_BHNPK = (x.reshape(*x.shape[:2], -1, PIECE, x.shape[3]) for x in layer)
    sums = wide(q_BHK)
    # a copy for each piece: keys would be transposed for a product without N in both factors
    q_BHNK = jnp.broadcast_to(
        q_BHK[:, :, None] * q_BHK.shape[-1] ** -0.5, k_BHNPK.shape[:3] + q_BHK.shape[-1:]
    )
    # otherwise XLA for CPUs rounds in bfloat16 differently if there is but one piece
    q_BHNK = materialised_on_cpu(q_BHNK)
    scores_BHNP = jnp.einsum("bhnk,bhnpk->bhnp", q_BHNK, k_BHNPK, preferred_element_type=sums)
    positions_1NP = jnp.arange(layer.k_BHSK.shape[2]).reshape(1, -1, PIECE)
    is_seen_BNP = positions_1NP <= lengths_B[:, None, None]
    scores_BHNP = jnp.where(is_seen_BNP[:, None], scores_BHNP, -jnp.inf)
    top_BH11 = scores_BHNP.max((2, 3), keepdims=True)
    weights_BHNP = materialised_on_cpu(_exp(scores_BHNP - top_BH11))
    sums_BHN = _by_halves(weights_BHNP)
    y_BHNK = jnp.einsum(
        "bhnp,bhnpk->bhnk", weights_BHNP.astype(v_BHNPK.dtype), v_BHNPK, preferred_element_type=sums
    )
    y_BHK, total_BH = _in_order(y_BHNK), _in_order(sums_BHN)
    return (y_BHK / total_BH[..., None]).astype(q_BHK.dtype)


def _exp(x: Array) -> Array:
    """The exponential of float32 numbers up to 0, by sums and products alone.

    XLA's own rounds differently in loops of another shape, such as those of a longer cache. A power
    of two is taken out and the rest is a Taylor series: within 3e-7 of the result, relatively.
    """
    power = jnp.round(jnp.maximum(x, LOWEST) / LN2)
    rest = (x - power * LN2_HIGH) - power * (LN2 - LN2_HIGH)
    series = jnp.ones_like(x)
    for n in range(8, 0, -1):
        series = 1 + rest / n * series
    factor = lax.bitcast_convert_type((power.astype(jnp.int32) + 127) << 23, jnp.float32)
    return jnp.where(x < LOWEST, 0, series * factor)


def _by_halves(x_BHNP: Array) -> Array:
    """The sum over a piece. A reduction's order would depend on the number of pieces."""
    while (half := x_BHNP.shape[3] // 2) > 0:
        x_BHNP = x_BHNP[..., :half] + x_BHNP[..., half:]
    return x_BHNP[..., 0]


def _in_order(x_BHN: Array) -> Array:
    """The sum over pieces, one after the other, so that trailing zeros change no bit."""
    total = x_BHN[:, :, 0]
    for n in range(1, x_BHN.shape[2]):
        total = total + x_BHN[:, :, n]
    return total

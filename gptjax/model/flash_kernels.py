"""The two kernels of flash attention, in Pallas for NVIDIA GPUs: no weights ever reach memory.

Dao (2023), "FlashAttention-2", sections 3.1 and 3.2. A program of the forward kernel has a block of
queries and meets the tiles of keys that they may see. A program of the backward kernel has a block
of tokens: first as keys it meets the queries after them, then as queries the keys before them.
Weights are powers of 2, of scores in units of log 2; their sums are kept as logarithms.

Dropout draws no bits from memory. Whether a weight is dropped is a hash of the seed, row, head,
query and key, so that the backward kernel finds what the forward kernel dropped.

Letters: T queries and S keys of a tile, K head dim.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl

LOG2_E = math.log2(math.e)
LOWEST = -1e30  # the score of a pair that is masked; finite, since a whole tile may be
# Wellons (2018), "Prospecting for hash functions": the least biased of two multiplications
MULTIPLIERS = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
COLUMNS = np.uint32(0x9E3779B9)


def forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    documents_ref: Any,
    reach_ref: Any,
    seed_ref: Any,
    y_ref: Any,
    log_sum_ref: Any,
    *,
    tile: int,
    scale: float,
    rate: float,
) -> None:
    """Attend from a block of queries; also writes the logarithm of each sum of weights.

    >>> forward_kernel(*references, tile=64, scale=0.125, rate=0.0)  # doctest: +SKIP
    """
    q_TK = q_ref[...]
    block = q_TK.shape[0]
    first = pl.program_id(0) * block
    own_T = None if documents_ref is None else documents_ref[pl.ds(first, block)]
    seed = _matrix_seed(seed_ref) if rate else None

    def meet(j: Array, carry: tuple[Array, Array, Array], diagonal: bool) -> tuple:
        y_TK, highest_T, sum_T = carry
        start = j * tile
        keys = pl.ds(start, tile)
        scores_TS = _dot(q_TK, k_ref[keys, :], (1, 1)) * (scale * LOG2_E)
        other_S = None if documents_ref is None else documents_ref[keys]
        scores_TS = _masked(scores_TS, first, start, own_T, other_S, diagonal)
        higher_T = jnp.maximum(highest_T, scores_TS.max(1))
        shrunk_T = jnp.exp2(highest_T - higher_T)
        weights_TS = jnp.exp2(scores_TS - higher_T[:, None])
        sum_T = sum_T * shrunk_T + weights_TS.sum(1)
        if rate:
            kept_TS = _kept(seed, first, start, weights_TS.shape, rate)
            weights_TS = jnp.where(kept_TS, weights_TS, 0)
        v_SK = v_ref[keys, :]
        y_TK = y_TK * shrunk_T[:, None] + _dot(weights_TS.astype(v_SK.dtype), v_SK, (1, 0))
        return y_TK, higher_T, sum_T

    carry = (
        jnp.zeros(q_TK.shape, jnp.float32),
        jnp.full(block, -jnp.inf, jnp.float32),
        jnp.zeros(block, jnp.float32),
    )
    begin = 0 if reach_ref is None else reach_ref[0] // tile
    diagonal, end = first // tile, (first + block) // tile
    carry = lax.fori_loop(begin, diagonal, lambda j, carry: meet(j, carry, False), carry)
    y_TK, highest_T, sum_T = lax.fori_loop(
        diagonal, end, lambda j, carry: meet(j, carry, True), carry
    )
    y_ref[...] = (y_TK / (sum_T * (1 - rate))[:, None]).astype(y_ref.dtype)
    log_sum_ref[...] = highest_T + jnp.log2(sum_T)


def backward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    documents_ref: Any,
    reach_ref: Any,
    seed_ref: Any,
    dy_ref: Any,
    log_sum_ref: Any,
    mean_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    tile: int,
    scale: float,
    rate: float,
) -> None:
    """Gradients of one block of tokens; `mean_ref` has each query's mean gradient of a weight.

    >>> backward_kernel(*references, tile=32, scale=0.125, rate=0.0)  # doctest: +SKIP
    """
    block, length = dq_ref.shape[0], q_ref.shape[0]
    first = pl.program_id(0) * block
    own = pl.ds(first, block)
    factor = scale / (1 - rate)
    seed = _matrix_seed(seed_ref) if rate else None

    def weights_and_gradients(
        queries: Any, keys: Any, starts: tuple, arrays: tuple, diagonal: bool
    ) -> tuple[Array, Array]:
        """Weights after dropout, but for a factor, and gradients of the scores."""
        q_TK, k_SK, v_SK, dy_TK = arrays
        first_query, first_key = starts
        scores_TS = _dot(q_TK, k_SK, (1, 1)) * (scale * LOG2_E)
        own_T = other_S = None
        if documents_ref is not None:
            own_T, other_S = documents_ref[queries], documents_ref[keys]
        scores_TS = _masked(scores_TS, first_query, first_key, own_T, other_S, diagonal)
        weights_TS = jnp.exp2(scores_TS - log_sum_ref[queries][:, None])
        dweights_TS, dropped_TS = _dot(dy_TK, v_SK, (1, 1)), weights_TS
        if rate:
            kept_TS = _kept(seed, first_query, first_key, weights_TS.shape, rate)
            dweights_TS = jnp.where(kept_TS, dweights_TS, 0)
            dropped_TS = jnp.where(kept_TS, weights_TS, 0)
        mean_T = mean_ref[queries] * (1 - rate)
        # by the factor now, so that float16 holds all that the gradients of q and k hold
        return dropped_TS, weights_TS * (dweights_TS - mean_T[:, None]) * factor

    k_SK, v_SK = k_ref[own, :], v_ref[own, :]

    def as_keys(i: Array, carry: tuple[Array, Array], diagonal: bool) -> tuple[Array, Array]:
        dk_SK, dv_SK = carry
        queries = pl.ds(i * tile, tile)
        q_TK, dy_TK = q_ref[queries, :], dy_ref[queries, :]
        arrays = (q_TK, k_SK, v_SK, dy_TK)
        weights_TS, dscores_TS = weights_and_gradients(
            queries, own, (i * tile, first), arrays, diagonal
        )
        dv_SK += _dot(weights_TS.astype(dy_TK.dtype), dy_TK, (0, 0))
        dk_SK += _dot(dscores_TS.astype(q_TK.dtype), q_TK, (0, 0))
        return dk_SK, dv_SK

    zeros_SK = jnp.zeros(k_SK.shape, jnp.float32)
    diagonal, after = first // tile, (first + block) // tile
    end = length // tile if reach_ref is None else reach_ref[1] // tile
    carry = lax.fori_loop(
        diagonal, after, lambda i, carry: as_keys(i, carry, True), (zeros_SK, zeros_SK)
    )
    dk_SK, dv_SK = lax.fori_loop(after, end, lambda i, carry: as_keys(i, carry, False), carry)
    dk_ref[...] = dk_SK.astype(dk_ref.dtype)
    dv_ref[...] = (dv_SK * (1 / (1 - rate))).astype(dv_ref.dtype)

    q_TK, dy_TK = q_ref[own, :], dy_ref[own, :]

    def as_queries(j: Array, dq_TK: Array, diagonal: bool) -> Array:
        keys = pl.ds(j * tile, tile)
        k_SK = k_ref[keys, :]
        arrays = (q_TK, k_SK, v_ref[keys, :], dy_TK)
        _, dscores_TS = weights_and_gradients(own, keys, (first, j * tile), arrays, diagonal)
        return dq_TK + _dot(dscores_TS.astype(k_SK.dtype), k_SK, (1, 0))

    begin = 0 if reach_ref is None else reach_ref[0] // tile
    dq_TK = lax.fori_loop(begin, diagonal, lambda j, dq: as_queries(j, dq, False), zeros_SK)
    dq_TK = lax.fori_loop(diagonal, after, lambda j, dq: as_queries(j, dq, True), dq_TK)
    dq_ref[...] = dq_TK.astype(dq_ref.dtype)


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Product of two matrices over `axes`, one of each, with float32 sums."""
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _masked(
    scores_TS: Array, first: Any, start: Any, own_T: Any, other_S: Any, diagonal: bool
) -> Array:
    """Scores of queries from `first` on and keys from `start` on, where they may see each other."""
    allowed_TS = None
    if diagonal:
        query_TS = first + lax.broadcasted_iota(jnp.int32, scores_TS.shape, 0)
        key_TS = start + lax.broadcasted_iota(jnp.int32, scores_TS.shape, 1)
        allowed_TS = query_TS >= key_TS
    if own_T is not None:
        same_TS = own_T[:, None] == other_S[None, :]
        allowed_TS = same_TS if allowed_TS is None else jnp.logical_and(allowed_TS, same_TS)
    return scores_TS if allowed_TS is None else jnp.where(allowed_TS, scores_TS, LOWEST)


def _matrix_seed(seed_ref: Any) -> Array:
    """Where the hashes of one row and head begin."""
    matrix = pl.program_id(2) * pl.num_programs(1) + pl.program_id(1)
    return seed_ref[0] ^ _hash(seed_ref[1] + matrix.astype(jnp.uint32))


def _kept(seed: Any, first: Any, start: Any, shape: tuple[int, ...], rate: float) -> Array:
    """Which weights of a tile dropout keeps, [T, S]; the probability is exact to 2^-32."""
    query_T = first + lax.iota(jnp.int32, shape[0])
    key_S = start + lax.iota(jnp.int32, shape[1])
    query_T = _hash(seed + query_T.astype(jnp.uint32))
    key_S = _hash(_hash(seed ^ COLUMNS) + key_S.astype(jnp.uint32))
    return _hash(query_T[:, None] + key_S[None, :]) >= np.uint32(rate * 2**32)


def _hash(x: Any) -> Array:
    """A word of random bits for every word."""
    x = (x ^ (x >> 16)) * MULTIPLIERS[0]
    x = (x ^ (x >> 15)) * MULTIPLIERS[1]
    return x ^ (x >> 16)

"""Samplers: from the logits of a batch to one token a row, each as its own settings say.

Every filter is a function of `logits_BV` (float32) that gives removed tokens -inf and leaves a row
that does not use it as it was, bit for bit. So a row's token depends on its own logits, settings
and key alone. A filter that no row uses is skipped. Of equally likely tokens at the boundary of a
filter all are kept, and at least one token always is.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.generation.rows import (
    SLICES,
    find_first,
    find_largest,
    find_threshold,
    fold,
    ordered_bits,
    sum_lanes,
    widen,
)
from gptjax.model.gpt import PADDING_LOGIT

TINIEST = float(jnp.finfo(jnp.float32).tiny)  # the smallest divisor that is not rounded to 0


class Sampling(NamedTuple):
    """The settings of a batch, one of each a row; the ranges are those of `SampleConfig`."""

    temperature_B: Array
    """float32; 0 takes the most likely token."""
    top_k_B: Array
    """int32; 0 keeps all."""
    top_p_B: Array
    """float32; 1 keeps all."""
    min_p_B: Array
    """float32; 0 keeps all."""
    repetition_penalty_B: Array
    """float32; 1 has no effect."""


def sample(logits_BV: Array, seen_BV: Array, sampling: Sampling, keys_B: Array) -> Array:
    """Sample a token id (int32) of each row, with the row's own key.

    Order: repetition penalty, temperature, top-k, top-p, min-p. Temperature 0 and a top-k of 1 take
    the most likely token, of equal ones the lowest id. Rows that only pad the vocabulary and logits
    of -inf are never drawn. `seen_BV` (bool) marks the tokens of the text so far. Rows are
    independent with keys of threefry; other generators may mix the keys of a batch.
    """
    is_padding_BV = logits_BV <= PADDING_LOGIT / 2
    logits_BV = jnp.where(is_padding_BV, -jnp.inf, logits_BV.astype(jnp.float32))
    logits_BV = penalise_repetition(logits_BV, seen_BV, sampling.repetition_penalty_B)
    is_greedy_B = (sampling.temperature_B == 0) | (sampling.top_k_B == 1)
    top_B = most_likely(logits_BV, 1)[0][:, 0]

    def draw(_: None) -> Array:
        kept_BV = divide_by_temperature(logits_BV, sampling.temperature_B)
        kept_BV = keep_top_k(kept_BV, jnp.where(is_greedy_B, 0, sampling.top_k_B))
        kept_BV = keep_top_p(kept_BV, jnp.where(is_greedy_B, 1.0, sampling.top_p_B))
        kept_BV = keep_min_p(kept_BV, sampling.min_p_B)
        return jnp.where(is_greedy_B, top_B, draw_tokens(kept_BV, keys_B))

    return lax.cond(jnp.all(is_greedy_B), lambda _: top_B, draw, None)


def penalise_repetition(logits_BV: Array, seen_BV: Array, penalty_B: Array) -> Array:
    """Divide the positive logits of seen tokens by the penalty, and multiply their negative ones.

    Keskar et al. (2019), CTRL, section 4.1, in the form that also lowers negative logits.
    """
    penalty_B1 = penalty_B[:, None]
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV & (penalty_B1 != 1), penalised_BV, logits_BV)


def divide_by_temperature(logits_BV: Array, temperature_B: Array) -> Array:
    """Divide the logits by the temperature; 0 counts as 1.

    The largest logit becomes 0, which changes no probability, and keeps temperatures near 0 from
    an overflow.
    """
    divisor_B = jnp.where(temperature_B == 0, 1.0, jnp.maximum(temperature_B, TINIEST))
    return (logits_BV - _largest(logits_BV)[:, None]) / divisor_B[:, None]


def keep_top_k(logits_BV: Array, k_B: Array) -> Array:
    """Keep the k most likely tokens; k of 0 keeps all."""
    uses_B = (k_B > 0) & (k_B < logits_BV.shape[-1])

    def cut(logits_BV: Array) -> Array:
        wide_BV = widen(logits_BV, -jnp.inf)
        low_B = jnp.full(k_B.shape, ordered_bits(-jnp.inf))
        high_B = jnp.where(uses_B, ordered_bits(find_largest(wide_BV)) + 1, low_B)
        threshold_B = find_threshold(wide_BV, jnp.ones_like, k_B * 1.0, low_B, high_B)
        return _keep(logits_BV, logits_BV >= threshold_B[:, None], uses_B)

    return lax.cond(jnp.any(uses_B), cut, lambda logits_BV: logits_BV, logits_BV)


def keep_top_p(logits_BV: Array, p_B: Array) -> Array:
    """Keep the fewest most likely tokens whose probabilities add up to at least p; 1 keeps all.

    Nucleus sampling: Holtzman et al. (2019), section 3.1.
    """
    uses_B = p_B < 1

    def cut(logits_BV: Array) -> Array:
        weights_BV = _weights(logits_BV)
        target_B = p_B * sum_lanes(fold(operator.add, weights_BV))
        low_B = jnp.full(p_B.shape, ordered_bits(0.0))
        high_B = jnp.where(uses_B, ordered_bits(2.0), low_B)  # the largest weight is 1
        threshold_B = find_threshold(weights_BV, lambda x: x, target_B, low_B, high_B)
        keeps_BV = weights_BV[:, : logits_BV.shape[-1]] >= threshold_B[:, None]
        return _keep(logits_BV, keeps_BV, uses_B)

    return lax.cond(jnp.any(uses_B), cut, lambda logits_BV: logits_BV, logits_BV)


def keep_min_p(logits_BV: Array, p_B: Array) -> Array:
    """Keep the tokens that are at least p times as likely as the most likely one; 0 keeps all.

    Nguyen et al. (2024), section 3.
    """
    floor_B = _largest(logits_BV) + jnp.log(p_B)
    return jnp.where(logits_BV >= floor_B[:, None], logits_BV, -jnp.inf)


def draw_tokens(logits_BV: Array, keys_B: Array) -> Array:
    """Draw a token id (int32) of each row from the softmax of its logits, with the row's key."""
    return _draw_index(_weights(logits_BV), keys_B)


def _draw_index(weights_BV: Array, keys_B: Array) -> Array:
    """Draw an index of each row by weight: first a lane of the folded row, then one of its entries.

    That needs a few dozen random numbers instead of one for every token.
    """
    draw = jax.vmap(jax.random.categorical)
    if weights_BV.shape[-1] <= SLICES:
        return draw(keys_B, jnp.log(weights_BV)).astype(jnp.int32)
    wide_BV, keys_B2 = widen(weights_BV, 0.0), jax.vmap(jax.random.split)(keys_B)
    lanes_BW = fold(operator.add, wide_BV)
    lane_B = _draw_index(lanes_BW, keys_B2[:, 0])
    entries_BS = lane_B[:, None] + jnp.arange(SLICES) * lanes_BW.shape[-1]
    weights_BS = jnp.take_along_axis(wide_BV, entries_BS, axis=1)
    return lane_B + lanes_BW.shape[-1] * draw(keys_B2[:, 1], jnp.log(weights_BS)).astype(jnp.int32)


def most_likely(logits_BV: Array, n: int) -> tuple[Array, Array]:
    """The ids (int32) and logits, or log-probabilities, of the n most likely tokens of each row.

    The most likely comes first; of equal ones the lowest id.
    """
    bits_BV, ids = ordered_bits(widen(logits_BV, -jnp.inf)), []
    index_V = jnp.arange(bits_BV.shape[-1], dtype=jnp.int32)
    for _ in range(n):
        largest_B = jnp.max(fold(jnp.maximum, bits_BV), axis=-1)
        ids.append(find_first(bits_BV == largest_B[:, None]))
        bits_BV = jnp.where(index_V == ids[-1][:, None], jnp.iinfo(jnp.int32).min, bits_BV)
    ids_Bn = jnp.stack(ids, axis=1)
    return ids_Bn, jnp.take_along_axis(logits_BV, ids_Bn, axis=1)


def log_normaliser(logits_BV: Array) -> Array:
    """The logarithm of the sum of exponentials: a logit minus it is a log-probability."""
    total_B = sum_lanes(fold(operator.add, _weights(logits_BV)))
    return _largest(logits_BV) + jnp.log(total_B)


def _largest(logits_BV: Array) -> Array:
    return find_largest(widen(logits_BV, -jnp.inf))


def _weights(logits_BV: Array) -> Array:
    """Probabilities up to a factor, the largest 1; the width is that of a folded row."""
    return jnp.exp(widen(logits_BV, -jnp.inf) - _largest(logits_BV)[:, None])


def _keep(logits_BV: Array, keeps_BV: Array, uses_B: Array) -> Array:
    return jnp.where(uses_B[:, None] & ~keeps_BV, -jnp.inf, logits_BV)

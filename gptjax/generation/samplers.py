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

# XLA multiplies by the reciprocals of these divisors, which must not be rounded to 0 or infinity.
SMALLEST, LARGEST = 1e-30, 1e30


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
    nothing_B = jnp.zeros(is_greedy_B.shape, jnp.int32)

    def draw() -> Array:
        tempered_BV = divide_by_temperature(logits_BV, sampling.temperature_B)
        return draw_tokens(_filter(tempered_BV, sampling, ~is_greedy_B), keys_B)

    top_B = lax.cond(jnp.any(is_greedy_B), lambda: most_likely(logits_BV), lambda: nothing_B)
    drawn_B = lax.cond(jnp.all(is_greedy_B), lambda: nothing_B, draw)
    return jnp.where(is_greedy_B, top_B, drawn_B)


def _filter(logits_BV: Array, sampling: Sampling, is_drawn_B: Array) -> Array:
    """Top-k, top-p and min-p of the rows that are drawn."""
    k_B = jnp.where(is_drawn_B, sampling.top_k_B, 0)
    p_B = jnp.where(is_drawn_B, sampling.top_p_B, 1.0)

    def cut(logits_BV: Array) -> Array:
        return keep_min_p(keep_top_p(keep_top_k(logits_BV, k_B), p_B), sampling.min_p_B)

    uses_B = (k_B > 0) | (p_B < 1) | (sampling.min_p_B > 0)
    return lax.cond(jnp.any(uses_B), cut, lambda logits_BV: logits_BV, logits_BV)


def penalise_repetition(logits_BV: Array, seen_BV: Array, penalty_B: Array) -> Array:
    """Divide the positive logits of seen tokens by the penalty, and multiply their negative ones.

    Keskar et al. (2019), CTRL, section 4.1, in the form that also lowers negative logits.
    """
    penalty_B1 = jnp.clip(penalty_B, SMALLEST, LARGEST)[:, None]
    divided_BV = jnp.minimum(logits_BV / penalty_B1, jnp.finfo(jnp.float32).max)
    penalised_BV = jnp.where(logits_BV > 0, divided_BV, logits_BV * penalty_B1)
    return jnp.where(seen_BV & (penalty_B1 != 1), penalised_BV, logits_BV)


def divide_by_temperature(logits_BV: Array, temperature_B: Array) -> Array:
    """Divide the logits by the temperature; 0 counts as 1.

    The largest logit becomes 0, which changes no probability, and keeps temperatures near 0 from
    an overflow.
    """
    divisor_B = jnp.where(temperature_B == 0, 1.0, jnp.clip(temperature_B, SMALLEST, LARGEST))
    return (logits_BV - _largest(logits_BV)[:, None]) / divisor_B[:, None]


def keep_top_k(logits_BV: Array, k_B: Array) -> Array:
    """Keep the k most likely tokens; k of 0 keeps all."""
    uses_B = (k_B > 0) & (k_B < logits_BV.shape[-1])

    def cut(logits_BV: Array) -> Array:
        wide_BV = widen(logits_BV, -jnp.inf)
        low_B = jnp.full(k_B.shape, ordered_bits(-jnp.inf))
        high_B = jnp.where(uses_B, ordered_bits(find_largest(wide_BV)) + 1, low_B)
        threshold_B = find_threshold(wide_BV, jnp.ones_like, k_B * 1.0, low_B, high_B)
        return jnp.where(logits_BV >= threshold_B[:, None], logits_BV, -jnp.inf)

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
        # the largest weight is 1, and stays: p of 0 after rounding keeps it too
        high_B = jnp.where(uses_B, ordered_bits(1.0) + 1, low_B)
        threshold_B = find_threshold(weights_BV, lambda x: x, target_B, low_B, high_B)
        keeps_BV = weights_BV[:, : logits_BV.shape[-1]] >= threshold_B[:, None]
        return jnp.where(keeps_BV, logits_BV, -jnp.inf)

    return lax.cond(jnp.any(uses_B), cut, lambda logits_BV: logits_BV, logits_BV)


def keep_min_p(logits_BV: Array, p_B: Array) -> Array:
    """Keep the tokens that are at least p times as likely as the most likely one; 0 keeps all.

    Nguyen et al. (2024), section 3.
    """
    floor_B = _largest(logits_BV) + jnp.log(p_B)
    return jnp.where(logits_BV >= floor_B[:, None], logits_BV, -jnp.inf)


def draw_tokens(logits_BV: Array, keys_B: Array) -> Array:
    """Draw a token id (int32) of each row from the softmax of its logits, with the row's key.

    Weights are folded until one slice is left. From there, each step draws an entry of the lane
    that was drawn before: a few dozen random numbers instead of one for every token.
    """
    levels = [_weights(logits_BV)]
    while levels[-1].shape[-1] > SLICES:
        levels.append(widen(fold(operator.add, levels[-1]), 0.0))
    shape = len(levels), SLICES
    noise_BLS = jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys_B)
    lane_B = jnp.zeros(logits_BV.shape[0], jnp.int32)
    for level, weights_BW in reversed([*enumerate(levels)]):
        lanes = weights_BW.shape[-1] // SLICES
        entries_BS = lane_B[:, None] + jnp.arange(SLICES)[None] * lanes
        weights_BS = jnp.take_along_axis(weights_BW, entries_BS, axis=1)
        # the largest sum of log-probability and Gumbel noise has the distribution
        slice_B = jnp.argmax(jnp.log(weights_BS) + noise_BLS[:, level], axis=1)
        lane_B += slice_B.astype(jnp.int32) * lanes
    return lane_B


def most_likely(logits_BV: Array) -> Array:
    """The id (int32) of the most likely token of each row; of equal ones the lowest."""
    bits_BV = ordered_bits(widen(logits_BV, -jnp.inf))
    largest_B = jnp.max(fold(jnp.maximum, bits_BV), axis=-1)
    return find_first(bits_BV == largest_B[:, None])


def log_normaliser(logits_BV: Array) -> Array:
    """The logarithm of the sum of exponentials: a logit minus it is a log-probability."""
    total_B = sum_lanes(fold(operator.add, _weights(logits_BV)))
    return _largest(logits_BV) + jnp.log(total_B)


def _largest(logits_BV: Array) -> Array:
    return find_largest(widen(logits_BV, -jnp.inf))


def _weights(logits_BV: Array) -> Array:
    """Probabilities up to a factor, the largest 1; the width is that of a folded row."""
    return jnp.exp(widen(logits_BV, -jnp.inf) - _largest(logits_BV)[:, None])

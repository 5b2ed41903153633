"""The softmax of the head's logits and its cross-entropy, in as few passes over the logits as can.

Logits are the largest array of a step, so what reads them decides how long a loss takes. A GPU
reads them twice: once for the largest logit, the sum of all exponentials and the target's logit of
each row, all in one reduction (Milakov and Gimelshein 2018), and once to write the gradient. XLA
for CPUs would run that reduction one number after another, slower and with a larger error of the
sum, so CPUs keep a pass for each.

Letters: M tokens of a chunk, D width, V vocabulary.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from gptjax.model.arguments import wide
from gptjax.model.parallel import first_row
from gptjax.model.places import TENSOR, UNSHARDED, ModelSharding
from gptjax.model.products import dot_fp32_sum, materialised_on_cpu

Rows = tuple[Array, Array, Array]


def softmax_losses(
    x_MD: Array,
    head_VD: Array,
    targets_M: Array,
    n_vocab: int,
    split: ModelSharding = UNSHARDED,
) -> tuple[Array, Array]:
    """Losses [M] and probabilities [M, V], both float32; 0 for padding of the vocabulary.

    If `split` divides the vocabulary, each device has its rows of the head, and gets the losses of
    all and the probabilities of its rows.

    >>> losses_M, _ = softmax_losses(jnp.zeros((2, 4)), jnp.ones((8, 4)), jnp.zeros(2, int), 1)
    >>> losses_M.tolist()
    [0.0, 0.0]
    """
    logits_MV = _logits(x_MD, head_VD, n_vocab, split)
    own_M = targets_M - first_row(len(head_VD), split)
    found: Any = lax.platform_dependent(logits_MV, own_M, cpu=_in_passes, default=_in_one_pass)
    (top_M, total_M, target_logit_M), weights_MV = found
    if split.tensor == 1:
        losses_M = jnp.log(total_M) + top_M - target_logit_M
        return losses_M, weights_MV / total_M[:, None]
    highest_M = lax.pmax(top_M, TENSOR)
    share_M = jnp.exp(top_M - highest_M)
    total_M = lax.psum(total_M * share_M, TENSOR)
    losses_M = jnp.log(total_M) + highest_M - lax.pmax(target_logit_M, TENSOR)
    return losses_M, weights_MV * (share_M / total_M)[:, None]


def _logits(x_MD: Array, head_VD: Array, n_vocab: int, split: ModelSharding) -> Array:
    """Logits [M, V] in float32, -inf for padding of the vocabulary."""
    logits_MV = materialised_on_cpu(dot_fp32_sum(x_MD, head_VD, (1, 1), wide(x_MD)))
    rows = len(head_VD)
    if split.tensor > 1:
        is_padding_V = first_row(rows, split) + jnp.arange(rows) >= n_vocab
        return jnp.where(is_padding_V[None], -jnp.inf, logits_MV)
    # masked in place: a `where` would pass over all logits once more
    padding = jnp.full((len(x_MD), rows - n_vocab), -jnp.inf, logits_MV.dtype)
    return materialised_on_cpu(lax.dynamic_update_slice(logits_MV, padding, (0, n_vocab)))


def _in_passes(logits_MV: Array, targets_M: Array) -> tuple[Rows, Array]:
    """Of each row the largest logit, the sum of `exp(logit - largest)` and the target's logit.

    Beside them those exponentials. A target that is not in the row has -inf.
    """
    top_M = _finite(jnp.max(logits_MV, axis=-1))
    weights_MV = jnp.exp(logits_MV - top_M[:, None])
    columns = logits_MV.shape[1]
    found_M1 = jnp.take_along_axis(logits_MV, jnp.clip(targets_M, 0, columns - 1)[:, None], axis=-1)
    is_there_M = (targets_M >= 0) & (targets_M < columns)
    target_logit_M = jnp.where(is_there_M, found_M1[:, 0], -jnp.inf)
    return (top_M, weights_MV.sum(-1), target_logit_M), weights_MV


def _in_one_pass(logits_MV: Array, targets_M: Array) -> tuple[Rows, Array]:
    """The same by one reduction."""
    columns_MV = lax.broadcasted_iota(targets_M.dtype, logits_MV.shape, 1)
    chosen_MV = jnp.where(columns_MV == targets_M[:, None], logits_MV, -jnp.inf)
    least, none = jnp.array(-jnp.inf, logits_MV.dtype), jnp.zeros((), logits_MV.dtype)
    rows = lax.reduce(
        (logits_MV, jnp.ones_like(logits_MV), chosen_MV), (least, none, least), _joined, (1,)
    )
    top_M, total_M, target_logit_M = rows
    top_M = _finite(top_M)
    return (top_M, total_M, target_logit_M), jnp.exp(logits_MV - top_M[:, None])


def _joined(one: Rows, other: Rows) -> Rows:
    """The three numbers of two parts of a row together."""
    (top, total, found), (other_top, other_total, other_found) = one, other
    # equal ones, both -inf among them, have no difference to take
    apart = jnp.where(top == other_top, 0.0, -jnp.abs(top - other_top))
    shrunk = jnp.exp(apart)
    is_higher = top >= other_top
    total = jnp.where(is_higher, total + other_total * shrunk, total * shrunk + other_total)
    return jnp.maximum(top, other_top), total, jnp.maximum(found, other_found)


def _finite(top_M: Array) -> Array:
    """The lowest finite number in place of -inf, whose differences would not be numbers."""
    return jnp.maximum(top_M, jnp.finfo(top_M.dtype).min)

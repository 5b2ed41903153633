"""Cross-entropy as weighted sums, never a mean, and without ever holding all logits.

Only the whole step knows the number of weighted tokens, so it divides once, after all sums. A mean
of means over unequal masks is wrong by tens of percent.

Targets are ids from 0 to n_vocab - 1. This is not checked, because values are unknown while a
program is compiled: larger ids give a loss that is nan or infinite, and negative ids have no
meaning. `gptjax.model.ops` says how to check gradients, also those of `cross_entropy`.

Letters: B batch, T time, M tokens of a chunk, D width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gptjax.model.arguments import at_least, check_shapes, floating, integers, wide
from gptjax.model.parallel import copy_to_tensor, first_row
from gptjax.model.places import UNSHARDED, ModelSharding
from gptjax.model.products import dot_fp32_sum, materialised_on_cpu
from gptjax.model.softmax import softmax_losses


def cross_entropy_rows(
    logits_BTV: ArrayLike, targets_BT: ArrayLike, weights_BT: ArrayLike
) -> Array:
    """Weighted sum over each row's positions of `-log p(target)`, in nats: float32 [B].

    >>> cross_entropy_rows(jnp.zeros((1, 3, 1)), [[0, 0, 0]], [[1, 1, 0]]).tolist()
    [0.0]
    """
    logits, targets = floating("logits_BTV", logits_BTV), integers("targets_BT", targets_BT)
    weights = floating("weights_BT", weights_BT)
    check_shapes(logits_BTV=logits, targets_BT=targets, weights_BT=weights)
    logits = logits.astype(wide(logits))
    log_normaliser_BT = jax.nn.logsumexp(logits, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((log_normaliser_BT - target_logit_BT) * weights, axis=1)


def cross_entropy(
    x_BTD: ArrayLike,
    head_VD: ArrayLike,
    targets_BT: ArrayLike,
    weights_BT: ArrayLike,
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding = UNSHARDED,
    only_weighted: bool = False,
) -> Array:
    """Weighted sum of `-log p(target)` over all positions, in nats: a float32 scalar.

    The head's product, the softmax and their gradients are computed in one pass, in chunks of
    `chunk_tokens` tokens: while a chunk's logits exist, its part of the gradients of `x_BTD` and
    `head_VD` is computed from them. So chunks need no extra products, and memory depends on neither
    B nor T. Rows of the head from `n_vocab` on are padding. If `split` divides the vocabulary, each
    device has its rows of the head, and `x_BTD` comes from `copy_to_tensor`.

    With `only_weighted`, chunks begin with the positions that have weight, and chunks without any
    are left out. Loss and gradients are the same, but weights of 0 get a gradient of 0. It is not
    for a divided vocabulary.

    >>> x_BTD, head_VD, ones_BT = jnp.zeros((1, 2, 4)), jnp.ones((8, 4)), jnp.ones((1, 2))
    >>> loss = cross_entropy(x_BTD, head_VD, [[0, 4]], ones_BT, n_vocab=5, chunk_tokens=1)
    >>> abs(loss - 2 * jnp.log(5)).item() < 1e-5
    True
    """
    x, head, targets = _head_inputs(x_BTD, head_VD, targets_BT, n_vocab, chunk_tokens, split)
    weights = floating("weights_BT", weights_BT)
    check_shapes({"B": len(x), "T": x.shape[1]}, weights_BT=weights)
    weights = weights.astype(wide(weights))
    loss: Any = _cross_entropy(
        x, head, targets, weights, n_vocab, chunk_tokens, split, only_weighted
    )
    return loss


def _head_inputs(
    x_BTD: ArrayLike,
    head_VD: ArrayLike,
    targets_BT: ArrayLike,
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding,
) -> tuple[Array, Array, Array]:
    """Features, head and targets as arrays, with shapes checked."""
    x, head = floating("x_BTD", x_BTD), floating("head_VD", head_VD)
    targets = integers("targets_BT", targets_BT)
    check_shapes(x_BTD=x, head_VD=head, targets_BT=targets)
    at_least(1, n_vocab=n_vocab, chunk_tokens=chunk_tokens)
    if n_vocab > len(head) * split.tensor:
        raise ValueError(f"n_vocab is {n_vocab}: head_VD has only {len(head)} rows")
    return x, head, targets


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _cross_entropy(
    x_BTD: Array,
    head_VD: Array,
    targets_BT: Array,
    weights_BT: Array,
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding,
    only_weighted: bool,
) -> Array:
    needed = weights_BT if only_weighted else None
    losses_BT = token_losses(x_BTD, head_VD, targets_BT, n_vocab, chunk_tokens, split, needed)
    return jnp.sum(losses_BT * weights_BT)


def _forward(
    x_BTD: Array,
    head_VD: Array,
    targets_BT: Array,
    weights_BT: Array,
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding,
    only_weighted: bool,
):
    head = head_VD.astype(x_BTD.dtype)

    def chunk(dhead_VD: Array, items: tuple[Array, Array, Array]):
        x_MD, targets_M, weights_M = items
        losses_M, probabilities_MV = softmax_losses(x_MD, head, targets_M, n_vocab, split)
        first = first_row(len(head), split)
        is_target_MV = first + jnp.arange(len(head))[None] == targets_M[:, None]
        dlogits_MV = (probabilities_MV - is_target_MV) * weights_M[:, None]
        dlogits_MV = materialised_on_cpu(dlogits_MV.astype(x_MD.dtype))
        dx_MD = dot_fp32_sum(dlogits_MV, head, (1, 0), x_MD.dtype)
        dhead_VD = dhead_VD + dot_fp32_sum(dlogits_MV, x_MD, (0, 0), wide(x_MD))
        return dhead_VD, (losses_M, dx_MD)

    # made from the targets, so that they vary over the same devices as their summands
    zeros = copy_to_tensor(jnp.zeros_like(targets_BT, wide(x_BTD), head_VD.shape), split)
    dhead_VD, (losses_BT, dx_BTD) = _over_chunks(
        chunk,
        zeros,
        (x_BTD, targets_BT, weights_BT),
        chunk_tokens,
        weights_BT if only_weighted else None,
    )
    loss = jnp.sum(losses_BT * weights_BT)
    return loss, (dx_BTD, dhead_VD.astype(head_VD.dtype), losses_BT)


def _backward(
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding,
    only_weighted: bool,
    saved: tuple[Array, Array, Array],
    dloss: Array,
):
    del n_vocab, chunk_tokens, split, only_weighted
    dx_BTD, dhead_VD, losses_BT = saved
    scale = dloss.astype(dx_BTD.dtype)
    return dx_BTD * scale, dhead_VD * dloss, None, losses_BT * dloss


_cross_entropy.defvjp(_forward, _backward)


def token_losses(
    x_BTD: ArrayLike,
    head_VD: ArrayLike,
    targets_BT: ArrayLike,
    n_vocab: int,
    chunk_tokens: int,
    split: ModelSharding = UNSHARDED,
    weights_BT: ArrayLike | None = None,
) -> Array:
    """`-log p(target)` at every position, in nats: float32 [B, T]. For evaluation: no gradient.

    Given weights, it may be 0 where they are, because it is not computed.

    >>> token_losses(jnp.zeros((1, 2, 4)), jnp.ones((8, 4)), [[0, 0]], 1, 2).tolist()
    [[0.0, 0.0]]
    """
    x, head, targets = _head_inputs(x_BTD, head_VD, targets_BT, n_vocab, chunk_tokens, split)
    head = head.astype(x.dtype)

    def chunk(_: None, items: tuple[Array, Array]):
        return None, softmax_losses(items[0], head, items[1], n_vocab, split)[0]

    weights = None if weights_BT is None else floating("weights_BT", weights_BT)
    return _over_chunks(chunk, None, (x, targets), chunk_tokens, weights)[1]


def _over_chunks(
    chunk,
    carry,
    arrays_BT: tuple[Array, ...],
    chunk_tokens: int,
    weights_BT: Array | None = None,
):
    """Scan `chunk` over the tokens of all arrays [B, T, ...], padded to chunks of equal length.

    Returns the carry and the outputs, in their shape [B, T, ...] again. Given weights, tokens that
    have one come first, and outputs are 0 in the chunks that have none.
    """
    batch, time = arrays_BT[0].shape[:2]
    tokens = batch * time
    n_chunks = -(-tokens // chunk_tokens)
    size = -(-tokens // n_chunks)
    if n_chunks == 1:
        weights_BT = None  # there is nothing to leave out
    order_N = None if weights_BT is None else _weighted_first(weights_BT)

    def cut(x: Array) -> Array:
        x = x.reshape(tokens, *x.shape[2:])
        x = x if order_N is None else x[order_N]
        # rows that only fill the last chunk weigh nothing, and are cut off again below
        padding = [(0, n_chunks * size - tokens)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(n_chunks, size, *x.shape[1:])

    items = tuple(map(cut, arrays_BT))
    if n_chunks == 1:
        carry, outputs = chunk(carry, tuple(x[0] for x in items))
        outputs = jax.tree.map(lambda y: y[None], outputs)
    elif weights_BT is None:
        carry, outputs = lax.scan(chunk, carry, items)
    else:
        used = -(-jnp.count_nonzero(weights_BT) // size)
        carry, outputs = _scan_of_first(chunk, carry, items, used)

    def whole(y: Array) -> Array:
        y = y.reshape(n_chunks * size, *y.shape[2:])[:tokens]
        y = y if order_N is None else y[jnp.argsort(order_N)]
        return y.reshape(batch, time, *y.shape[1:])

    return carry, jax.tree.map(whole, outputs)


def _weighted_first(weights_BT: Array) -> Array:
    """The order of all tokens, [B T], in which those with weight come first."""
    return jnp.argsort(weights_BT.reshape(-1) == 0, stable=True)


def _scan_of_first(chunk, carry, items: tuple[Array, ...], used: Array):
    """`lax.scan` over the first `used` of all items; the outputs of the others are 0."""

    def one(index: Array, done):
        carry, outputs = done
        carry, new = chunk(carry, tuple(x[index] for x in items))
        return carry, jax.tree.map(lambda y, part: y.at[index].set(part), outputs, new)

    def zeros(y: Any) -> Array:
        # made from the features, so that they vary over the same devices
        return jnp.zeros_like(items[0], y.dtype, (len(items[0]), *y.shape))

    outputs = jax.eval_shape(chunk, carry, tuple(x[0] for x in items))[1]
    return lax.fori_loop(0, used, one, (carry, jax.tree.map(zeros, outputs)))

"""Causal self-attention four ways, all the same function of (q, k, v).

`xla` forms all weights at once; `blockwise` holds one tile of them and forms it again in the
backward pass; `cudnn` and `pallas` are flash attention as one kernel each way. `cudnn` alone cannot
drop weights or keep attention inside documents: it numbers its random bits by how often a kernel
has run, in a loop and its backward pass too. `attend` is the definition, for any mask.

Integers become float32. Scores and softmax are float32, or float64 if an input is. Shapes that do
not fit raise `ValueError`. Letters: B batch, T query time, S key time, H heads, K head dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from gptjax.config.attention import TILES_FROM, portable
from gptjax.model.arguments import at_least, check_shapes, floating, integers, probability
from gptjax.model.attention_products import ATTENDED, attention_scores, weighted_values
from gptjax.model.ops import dropout

Attention = Callable[..., Array]

SEGMENTS = 4  # a query block sees the keys up to the end of its segment: 10/16 of all pairs
BLOCK = TILES_FROM // SEGMENTS  # queries whose weights exist at once


def attend(
    q_BTHK: ArrayLike,
    k_BSHK: ArrayLike,
    v_BSHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    mask_BTS: ArrayLike | None = None,
) -> Array:
    """Scaled dot-product attention over the allowed positions, [B, T, H, K].

    Vaswani et al. (2017), equation 1: `softmax(q k^T / sqrt(K)) v`. The boolean mask is True where
    a query may look; it is [B, T, S], or [T, S] for all rows alike. Without a mask, attention is
    causal and S is T. A query that may look nowhere gets the mean of all values. If a `key` is
    given, weights are dropped with probability `rate`. The head dim of the values may differ.

    >>> q = k = jnp.zeros((1, 3, 1, 2))
    >>> v = jnp.arange(3).reshape(1, 3, 1, 1)
    >>> attend(q, k, v, mask_BTS=jnp.eye(3) > 0).ravel().tolist()
    [0.0, 1.0, 2.0]
    """
    q, k, v = floating("q_BTHK", q_BTHK), floating("k_BSHK", k_BSHK), floating("v_BSHK", v_BSHK)
    sizes = check_shapes(q_BTHK=q)
    if mask_BTS is None:
        sizes["S"] = sizes["T"]
        mask = causal_mask(sizes["T"])[None]
    else:
        mask = jnp.asarray(mask_BTS)
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.dtype != bool:
            raise ValueError(
                f"mask_BTS is {mask.dtype}: expected bool, True where a query may look"
            )
    sizes = check_shapes(sizes, k_BSHK=k)
    check_shapes({letter: sizes[letter] for letter in "BSH"}, v_BSHK=v)
    check_shapes(sizes if mask.shape[:1] != (1,) else sizes | {"B": 1}, mask_BTS=mask)
    q, k, v = map(_heads_first, (q, k, v))
    return _heads_first(_attend(q, k, v, mask, probability("rate", rate), key))


def _attend(
    q_BHTK: Array, k_BHSK: Array, v_BHSK: Array, mask_BTS: Array, rate: Any, key: Array | None
) -> Array:
    """`attend` on checked arrays with the heads first, as the products need them."""
    scores_BHTS = attention_scores(q_BHTK, k_BHSK)
    lowest = jnp.finfo(scores_BHTS.dtype).min
    weights_BHTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BHTS, lowest), axis=-1)
    return weighted_values(dropout(weights_BHTS, rate, key), v_BHSK)


def _fitting(q: Any, k: Any, v: Any, documents: Any) -> tuple[Array, Array, Array, Array | None]:
    """The arguments of self-attention as arrays of floats and integers, with shapes checked."""
    q, k, v = floating("q_BTHK", q), floating("k_BTHK", k), floating("v_BTHK", v)
    sizes = check_shapes(q_BTHK=q, k_BTHK=k)
    check_shapes({letter: sizes[letter] for letter in "BTH"}, v_BTHK=v)
    if documents is not None:
        documents = integers("documents_BT", documents)
        check_shapes(sizes, documents_BT=documents)
    return q, k, v, documents


def xla_attention(
    q_BTHK: ArrayLike,
    k_BTHK: ArrayLike,
    v_BTHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    documents_BT: ArrayLike | None = None,
) -> Array:
    """Causal attention with all B H T^2 weights in memory, [B, T, H, K].

    >>> q = k = jnp.zeros((1, 4, 1, 2))
    >>> v = jnp.arange(4).reshape(1, 4, 1, 1)
    >>> xla_attention(q, k, v, documents_BT=jnp.array([[0, 0, 1, 1]])).ravel().tolist()
    [0.0, 0.5, 2.0, 2.5]
    """
    *qkv, documents = _fitting(q_BTHK, k_BTHK, v_BTHK, documents_BT)
    q, k, v = map(_heads_first, qkv)
    mask_BTS = causal_mask(q.shape[2])[None]
    if documents is not None:
        mask_BTS &= same_document(documents, documents)
    y_BHTK = _attend(q, k, v, mask_BTS, probability("rate", rate), key)
    return checkpoint_name(_heads_first(y_BHTK), ATTENDED)


def blockwise_attention(
    q_BTHK: ArrayLike,
    k_BTHK: ArrayLike,
    v_BTHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    documents_BT: ArrayLike | None = None,
) -> Array:
    """Causal attention in O(T) memory, [B, T, H, K]: a scan over blocks of queries.

    After Rabe and Staats (2021): a block of queries meets all its keys, and the backward pass forms
    its weights again instead of keeping them. The queries are cut into four segments. Each leaves
    out the keys after it, so most of the pairs that the mask would discard are never computed. The
    same key drops other weights than in `xla_attention`.

    >>> q = k = v = jax.random.normal(jax.random.key(0), (1, 100, 2, 4))
    >>> bool(jnp.allclose(blockwise_attention(q, k, v), xla_attention(q, k, v), atol=1e-5))
    True
    """
    *qkv, documents = _fitting(q_BTHK, k_BTHK, v_BTHK, documents_BT)
    q, k, v = map(_heads_first, qkv)
    rate, time = probability("rate", rate), q.shape[2]
    segment = -(-time // (SEGMENTS * BLOCK)) * BLOCK
    outputs = []
    for start in range(0, time, segment):
        end = min(start + segment, time)
        keys = lax.slice_in_dim(k, 0, end, axis=2), lax.slice_in_dim(v, 0, end, axis=2)
        queries = lax.slice_in_dim(q, start, end, axis=2)
        seen = None if documents is None else documents[:, :end]
        outputs.append(_attend_in_blocks(queries, *keys, start, rate, key, seen))
    return checkpoint_name(_heads_first(jnp.concatenate(outputs, axis=2)), ATTENDED)


def _attend_in_blocks(
    q: Array,
    k: Array,
    v: Array,
    start: int,
    rate: Any,
    key: Array | None,
    documents_BS: Array | None,
) -> Array:
    """Attention of queries that begin at position `start`, one block at a time."""
    time, end = q.shape[2], k.shape[2]
    n_blocks = -(-time // BLOCK)
    filled = n_blocks * BLOCK - time
    q = jnp.pad(q, ((0, 0), (0, 0), (0, filled), (0, 0)))
    q_blocks = jnp.moveaxis(q.reshape(*q.shape[:2], n_blocks, BLOCK, -1), 2, 0)
    own_blocks = None
    if documents_BS is not None:
        own_BT = jnp.pad(documents_BS[:, start:], ((0, 0), (0, filled)), mode="edge")
        own_blocks = jnp.moveaxis(own_BT.reshape(-1, n_blocks, BLOCK), 1, 0)

    # turned outside of the loop, as the products want them
    k_BHKS, v_BHKS = k.swapaxes(2, 3), v.swapaxes(2, 3)

    @jax.checkpoint
    def block(q_block: Array, first: Array, own_block: Array | None) -> Array:
        allowed = ((first + jnp.arange(BLOCK))[:, None] >= jnp.arange(end)[None])[None]
        if own_block is not None and documents_BS is not None:
            allowed &= same_document(own_block, documents_BS)
        block_key = None if key is None else jax.random.fold_in(key, first)
        k, v = k_BHKS.swapaxes(2, 3), v_BHKS.swapaxes(2, 3)
        return _attend(q_block, k, v, allowed, rate, block_key)

    firsts = start + BLOCK * jnp.arange(n_blocks)
    items = q_blocks, firsts, own_blocks
    if n_blocks == 1:
        y = block(*jax.tree.map(lambda x: x[0], items))
    else:
        y_blocks = lax.map(lambda item: block(*item), items)
        y = jnp.moveaxis(y_blocks, 0, 2).reshape(*q.shape[:3], v.shape[3])
    return y[:, :, :time]


def cudnn_attention(
    q_BTHK: ArrayLike,
    k_BTHK: ArrayLike,
    v_BTHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    documents_BT: ArrayLike | None = None,
) -> Array:
    """Causal flash attention as one cuDNN kernel (Dao et al. 2022), [B, T, H, K].

    Needs an NVIDIA GPU of compute capability 8.0 or newer, float16 or bfloat16, and a head dim that
    is a multiple of 8 up to 128. Raises `ValueError` for dropout of weights and for documents.

    >>> cudnn_attention(q_BTHK, k_BTHK, v_BTHK)  # doctest: +SKIP
    """
    q, k, v, documents = _fitting(q_BTHK, k_BTHK, v_BTHK, documents_BT)
    rate = probability("rate", rate)
    if documents is not None:
        raise ValueError("cuDNN's attention cannot keep documents apart: use pallas or blockwise")
    if key is not None and not (isinstance(rate, float) and rate == 0.0):
        raise ValueError("cuDNN's attention cannot drop weights: use pallas or blockwise")
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def pallas_attention(
    q_BTHK: ArrayLike,
    k_BTHK: ArrayLike,
    v_BTHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    documents_BT: ArrayLike | None = None,
) -> Array:
    """Causal flash attention by our own kernels, which drop weights too, [B, T, H, K].

    Needs an NVIDIA GPU of compute capability 8.0 or newer; the rate may not be traced. The same key
    drops other weights than in `xla_attention`.

    >>> pallas_attention(q_BTHK, k_BTHK, v_BTHK)  # doctest: +SKIP
    """
    from gptjax.model.flash import flash_attention  # Pallas takes a third of a second to import

    q, k, v, documents = _fitting(q_BTHK, k_BTHK, v_BTHK, documents_BT)
    return flash_attention(q, k, v, probability("rate", rate), key, documents)


def auto_attention(
    q_BTHK: ArrayLike,
    k_BTHK: ArrayLike,
    v_BTHK: ArrayLike,
    rate: ArrayLike = 0.0,
    key: Array | None = None,
    documents_BT: ArrayLike | None = None,
) -> Array:
    """Causal attention that works everywhere: blockwise from 256 tokens on, [B, T, H, K].

    >>> auto_attention(*jnp.ones((3, 1, 4, 2, 8))).shape
    (1, 4, 2, 8)
    """
    q, k, v, documents = _fitting(q_BTHK, k_BTHK, v_BTHK, documents_BT)
    return ATTENTIONS[portable(q.shape[1])](q, k, v, rate, key, documents)


ATTENTIONS: dict[str, Attention] = {
    "auto": auto_attention,
    "xla": xla_attention,
    "blockwise": blockwise_attention,
    "cudnn": cudnn_attention,
    "pallas": pallas_attention,
}


def causal_mask(t: int) -> Array:
    """Boolean [T, T] that lets position t see positions 0 to t.

    >>> causal_mask(2).tolist()
    [[True, False], [True, True]]
    """
    at_least(0, t=t)
    return jnp.tril(jnp.ones((t, t), dtype=bool))


def document_numbers(tokens_BT: ArrayLike, eot_id: int) -> Array:
    """Number the documents of each row from 0, [B, T]; end-of-text belongs to the next document.

    It is the first token that a model sees of a document, in training as in sampling; the document
    before it only predicts it.

    >>> document_numbers(jnp.array([[7, 8, 256, 7]]), eot_id=256).tolist()
    [[0, 0, 1, 1]]
    """
    tokens = integers("tokens_BT", tokens_BT)
    check_shapes(tokens_BT=tokens)
    return jnp.cumsum(tokens == integers("eot_id", eot_id), axis=1, dtype=jnp.int32)


def same_document(documents_BT: ArrayLike, documents_BS: ArrayLike) -> Array:
    """Boolean [B, T, S]: whether query and key belong to the same document.

    >>> same_document(jnp.array([[0, 1]]), jnp.array([[0, 0, 1]])).tolist()
    [[[True, True, False], [False, False, True]]]
    """
    queries = integers("documents_BT", documents_BT)
    keys = integers("documents_BS", documents_BS)
    check_shapes(documents_BT=queries, documents_BS=keys)
    return queries[:, :, None] == keys[:, None]


def _heads_first(x: Array) -> Array:
    """Swap the second and third axis: [B, T, H, K] to [B, H, T, K] and back."""
    return x.swapaxes(1, 2)

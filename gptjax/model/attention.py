"""Causal self-attention three ways, all the same function of (q, k, v).

`xla` forms every weight at once; `blockwise` holds a tile of them and forms it again in the
backward pass; `cudnn` is flash attention as one kernel. The first two really drop weights, and
keep documents apart where `documents_BT` numbers them; cuDNN's public interface does neither
without a matrix of all weights, so it is refused there.

Letters: B batch, T query time, S key time, H heads, K head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.config.attention import TILES_FROM, portable
from gptjax.model.ops import dropout

Attention = Callable[[Array, Array, Array, float, Array | None, Array | None], Array]

SEGMENTS = 4  # a query block sees the keys up to the end of its segment: 10/16 of all pairs
BLOCK = TILES_FROM // SEGMENTS  # queries whose weights exist at once


def attend(
    q_BHTK: Array,
    k_BHSK: Array,
    v_BHSK: Array,
    mask_BTS: Array,
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Scaled dot-product attention over the allowed positions, [B, H, T, K].

    Vaswani et al. (2017), equation 1: `softmax(q k^T / sqrt(K)) v`. The mask is True where a query
    may look, in every row or, with B = 1, in all alike. Dropout, with probability `rate` and only
    where a `key` is given, falls on the weights. Scores and softmax are float32.
    """
    scores_BHTS = jnp.einsum(
        "bhtk,bhsk->bhts",
        q_BHTK * q_BHTK.shape[-1] ** -0.5,
        k_BHSK,
        preferred_element_type=jnp.float32,
    )
    lowest = jnp.finfo(jnp.float32).min
    weights_BHTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BHTS, lowest), axis=-1)
    weights_BHTS = dropout(weights_BHTS.astype(v_BHSK.dtype), rate, key)
    return jnp.einsum("bhts,bhsk->bhtk", weights_BHTS, v_BHSK)


def xla_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    rate: float = 0.0,
    key: Array | None = None,
    documents_BT: Array | None = None,
) -> Array:
    """Causal attention with all B H T^2 weights in memory, [B, T, H, K]."""
    q, k, v = map(_heads_first, (q_BTHK, k_BTHK, v_BTHK))
    mask_BTS = causal_mask(q.shape[2])[None]
    if documents_BT is not None:
        mask_BTS &= same_document(documents_BT, documents_BT)
    return _heads_first(attend(q, k, v, mask_BTS, rate, key))


def blockwise_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    rate: float = 0.0,
    key: Array | None = None,
    documents_BT: Array | None = None,
) -> Array:
    """Causal attention in O(T) memory, [B, T, H, K]: a scan over blocks of queries.

    After Rabe and Staats (2021): a block of queries meets all its keys, and the backward pass forms
    its weights again instead of keeping them. The queries are cut into four segments, each of which
    leaves out the keys that come after it, so that most of what the mask would discard is never
    computed.
    """
    q, k, v = map(_heads_first, (q_BTHK, k_BTHK, v_BTHK))
    time = q.shape[2]
    segment = -(-time // (SEGMENTS * BLOCK)) * BLOCK
    outputs = []
    for start in range(0, time, segment):
        end = min(start + segment, time)
        keys = lax.slice_in_dim(k, 0, end, axis=2), lax.slice_in_dim(v, 0, end, axis=2)
        queries = lax.slice_in_dim(q, start, end, axis=2)
        documents = None if documents_BT is None else documents_BT[:, :end]
        outputs.append(_attend_in_blocks(queries, *keys, start, rate, key, documents))
    return _heads_first(jnp.concatenate(outputs, axis=2))


def _attend_in_blocks(
    q: Array,
    k: Array,
    v: Array,
    start: int,
    rate: float,
    key: Array | None,
    documents_BS: Array | None,
) -> Array:
    """Attention of queries that begin at position `start`, one block at a time."""
    time = q.shape[2]
    n_blocks = -(-time // BLOCK)
    filled = n_blocks * BLOCK - time
    q = jnp.pad(q, ((0, 0), (0, 0), (0, filled), (0, 0)))
    q_blocks = jnp.moveaxis(q.reshape(*q.shape[:2], n_blocks, BLOCK, -1), 2, 0)
    own_blocks = None
    if documents_BS is not None:
        own_BT = jnp.pad(documents_BS[:, start:], ((0, 0), (0, filled)), mode="edge")
        own_blocks = jnp.moveaxis(own_BT.reshape(-1, n_blocks, BLOCK), 1, 0)

    @jax.checkpoint
    def block(q_block: Array, first: Array, own_block: Array | None) -> Array:
        allowed = ((first + jnp.arange(BLOCK))[:, None] >= jnp.arange(k.shape[2])[None])[None]
        if own_block is not None and documents_BS is not None:
            allowed &= same_document(own_block, documents_BS)
        block_key = None if key is None else jax.random.fold_in(key, first)
        return attend(q_block, k, v, allowed, rate, block_key)

    firsts = start + BLOCK * jnp.arange(n_blocks)
    items = q_blocks, firsts, own_blocks
    if n_blocks == 1:
        y = block(*jax.tree.map(lambda x: x[0], items))
    else:
        y_blocks = lax.map(lambda item: block(*item), items)
        y = jnp.moveaxis(y_blocks, 0, 2).reshape(*q.shape[:3], v.shape[3])
    return y[:, :, :time]


def cudnn_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    rate: float = 0.0,
    key: Array | None = None,
    documents_BT: Array | None = None,
) -> Array:
    """Causal flash attention as one cuDNN kernel (Dao et al. 2022), [B, T, H, K].

    NVIDIA GPUs from compute capability 8.0 on, float16 or bfloat16, head dim a multiple of 8 up to
    128. Raises `ValueError` if weights are to be dropped or documents kept apart.
    """
    if documents_BT is not None:
        raise ValueError("cuDNN's attention cannot keep documents apart: use xla or blockwise")
    if rate and key is not None:
        raise ValueError("cuDNN's attention cannot drop weights: use xla or blockwise")
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTHK, v_BTHK, is_causal=True, implementation="cudnn"
    )


def auto_attention(
    q_BTHK: Array,
    k_BTHK: Array,
    v_BTHK: Array,
    rate: float = 0.0,
    key: Array | None = None,
    documents_BT: Array | None = None,
) -> Array:
    """Causal attention that works everywhere: blockwise from 256 tokens on, [B, T, H, K]."""
    chosen = ATTENTIONS[portable(q_BTHK.shape[1])]
    return chosen(q_BTHK, k_BTHK, v_BTHK, rate, key, documents_BT)


ATTENTIONS: dict[str, Attention] = {
    "auto": auto_attention,
    "xla": xla_attention,
    "blockwise": blockwise_attention,
    "cudnn": cudnn_attention,
}


def causal_mask(t: int) -> Array:
    """Boolean [T, T] that lets position t see positions 0 to t."""
    return jnp.tril(jnp.ones((t, t), dtype=bool))


def document_numbers(tokens_BT: Array, eot_id: int) -> Array:
    """Number the documents of each row from 0, [B, T]; end-of-text belongs to what it precedes.

    It is the first thing that a model sees of a document, as it is where text is sampled; the
    document before it only has to predict it.
    """
    return jnp.cumsum(tokens_BT == eot_id, axis=1, dtype=jnp.int32)


def same_document(documents_BT: Array, documents_BS: Array) -> Array:
    """Boolean [B, T, S]: whether query and key are of one document."""
    return documents_BT[:, :, None] == documents_BS[:, None]


def _heads_first(x: Array) -> Array:
    """Swap the second and third axis: [B, T, H, K] to [B, H, T, K] and back."""
    return x.swapaxes(1, 2)


def cudnn_problem(head_dim: int, time: int, dtype: str) -> str | None:
    """Why cuDNN's attention does not work here; None if it does.

    Runs it forward and backward once on the first device, for only that tells: support depends on
    the card, the driver, the cuDNN that was installed and the shape.
    """
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, and this is {jax.default_backend()}"
    q = jnp.ones((1, time, 1, head_dim), dtype)

    def total(q: Array, k: Array, v: Array) -> Array:
        return cudnn_attention(q, k, v).astype(jnp.float32).sum()

    try:
        gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, q, q)
        finite = all(bool(jnp.isfinite(g.astype(jnp.float32)).all()) for g in gradients)
    except Exception as error:  # whatever it is, there is another way to attend
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None if finite else "its gradients are not finite"

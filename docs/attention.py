"""The attention of GPT in four steps, each a few lines; docs/attention.md explains them.

Each step is a pure function of one text and gives the step before it in a limit. The last one is
`gptjax.model.layers.CausalSelfAttention`. `jax.vmap` adds a batch to any of them.

Letters: T query time, S key time (the same tokens, looked at), D width, K head dim, H heads,
F features of a projection, B batch.
"""

from math import sqrt

import jax.numpy as jnp
from jax import Array
from jax.nn import softmax


def similarity_attention(x_TD: Array) -> Array:
    """Mix all tokens, each by how similar it is; nothing is learned: [T, D] to [T, D].

    Raschka (2024), section 3.3.
    """
    weights_TS = softmax(x_TD @ x_TD.T)
    return weights_TS @ x_TD


def self_attention(x_TD: Array, query_DK: Array, key_DK: Array, value_DK: Array) -> Array:
    """Attention with three learned matrices: [T, D] to [T, K].

    Vaswani et al. (2017), equation 1. Query sqrt(D) I, key I and value I give
    `similarity_attention`.
    """
    q_TK, k_SK, v_SK = x_TD @ query_DK, x_TD @ key_DK, x_TD @ value_DK
    weights_TS = softmax(q_TK @ k_SK.T / sqrt(q_TK.shape[-1]))
    return weights_TS @ v_SK


def causal_attention(
    x_TD: Array, query_DK: Array, key_DK: Array, value_DK: Array, mask_TS: Array | None = None
) -> Array:
    """Attention in which no token sees a later one: [T, D] to [T, K].

    The boolean mask is True where a token may look; by default at itself and at what comes before.
    A mask that is True everywhere gives `self_attention`.
    """
    q_TK, k_SK, v_SK = x_TD @ query_DK, x_TD @ key_DK, x_TD @ value_DK
    scores_TS = q_TK @ k_SK.T / sqrt(q_TK.shape[-1])
    if mask_TS is None:
        mask_TS = jnp.tri(len(x_TD), dtype=bool)
    weights_TS = softmax(jnp.where(mask_TS, scores_TS, -jnp.inf))
    return weights_TS @ v_SK


def multi_head_attention(
    x_TD: Array, query_HDK: Array, key_HDK: Array, value_HDK: Array, out_FD: Array
) -> Array:
    """Several causal attentions side by side, and a matrix that mixes them: [T, D] to [T, D].

    Vaswani et al. (2017), section 3.2.2; F is H times K. One head and the identity as `out_FD` give
    `causal_attention`.
    """
    heads = zip(query_HDK, key_HDK, value_HDK, strict=True)
    y_TF = jnp.concatenate([causal_attention(x_TD, *head) for head in heads], axis=-1)
    return y_TF @ out_FD


def split_heads(c_attn_DF: Array, n_head: int) -> list[Array]:
    """The query, key and value matrices of each head, three times [H, D, K], in GPT-2's `c_attn`.

    Its kernel is [D, 3 D]: all queries, all keys, all values, and within each, head after head.
    """
    return [
        part_DD.reshape(len(part_DD), n_head, -1).swapaxes(0, 1)
        for part_DD in jnp.split(c_attn_DF, 3, axis=-1)
    ]


def normalise(x_BD: Array, axis: int) -> Array:
    """Mean 0 and variance 1 along an axis: layer norm along -1, batch norm along 0.

    Ba et al. (2016) and Ioffe and Szegedy (2015), without the learned scale and shift.
    """
    mean = x_BD.mean(axis, keepdims=True)
    variance = x_BD.var(axis, keepdims=True)
    return (x_BD - mean) / jnp.sqrt(variance + 1e-5)

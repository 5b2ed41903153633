"""The arithmetic of a transformer as pure functions of arrays: no modules, no config, no state.

Letters: B batch, T query time, S key time, D width, H heads, K head dim. Statistics and softmax
are float32 whatever the inputs are; results come back in the input's type.
"""

import jax
import jax.numpy as jnp
from jax import Array


def gelu(x: Array) -> Array:
    """Gaussian error linear unit in its tanh form, as GPT-1 and GPT-2 compute it.

    Hendrycks and Gimpel (2016), section 2: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    """
    return jax.nn.gelu(x, approximate=True)


def layer_norm(x_BTD: Array, scale_D: Array, bias_D: Array | None, eps: float = 1e-5) -> Array:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift.

    Ba et al. (2016), equation 4, with the biased variance. `bias_D` may be absent.
    """
    x = x_BTD.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    along_last = (1,) * (x.ndim - 1) + (-1,)
    y = centred * jax.lax.rsqrt(variance + eps) * scale_D.reshape(along_last)
    if bias_D is not None:
        y = y + bias_D.reshape(along_last)
    return y.astype(x_BTD.dtype)


def causal_mask(t: int) -> Array:
    """Boolean [T, T] that lets position t see positions 0 to t."""
    return jnp.tril(jnp.ones((t, t), dtype=bool))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and divide the rest by `1 - rate`.

    Without a key nothing is dropped: evaluation passes none.
    """
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def attention(
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHK: Array,
    mask_TS: Array,
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Scaled dot-product attention over the allowed positions, [B, T, H, K].

    Vaswani et al. (2017), equation 1: `softmax(q k^T / sqrt(K)) v`. The mask is True where a query
    may look. Dropout, with probability `rate` and only where a `key` is given, falls on the
    weights.
    """
    scale = q_BTHK.shape[-1] ** -0.5
    scores_BHTS = jnp.einsum(
        "bthk,bshk->bhts", q_BTHK * scale, k_BSHK, preferred_element_type=jnp.float32
    )
    lowest = jnp.finfo(jnp.float32).min
    weights_BHTS = jax.nn.softmax(jnp.where(mask_TS[None, None], scores_BHTS, lowest), axis=-1)
    weights_BHTS = dropout(weights_BHTS.astype(v_BSHK.dtype), rate, key)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS, v_BSHK)

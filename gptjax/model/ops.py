"""The elementwise arithmetic of a transformer: pure functions of arrays, no modules, no state.

Letters: M rows, D width. Statistics are float32 whatever the inputs are; results come back in the
input's type. The backward passes are written out where autodiff would keep more than it needs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

GELU_SCALE = (2 / jnp.pi) ** 0.5
GELU_CUBIC = 0.044715


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Gaussian error linear unit in its tanh form, as GPT-1 and GPT-2 compute it.

    Hendrycks and Gimpel (2016), section 2: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`. The
    backward pass computes the tanh again, so that only `x` is kept.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return (0.5 * x * (1 + _gelu_tanh(x))).astype(x.dtype), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)  # the square of 300 is beyond float16
    tanh = _gelu_tanh(wide)
    slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * jnp.square(wide))
    return ((dy * 0.5 * (1 + tanh + wide * (1 - jnp.square(tanh)) * slope)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _gelu_tanh(x: Array) -> Array:
    return jnp.tanh(GELU_SCALE * x * (1 + GELU_CUBIC * jnp.square(x)))


def layer_norm(x_MD: Array, scale_D: Array, bias_D: Array | None, eps: float = 1e-5) -> Array:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: [..., D] to [..., D].

    Ba et al. (2016), equation 4, with the biased variance. `bias_D` may be absent. Statistics are
    float32; the backward pass needs no more than `x` and two numbers a row.
    """
    y: Any = _layer_norm(x_MD.reshape(-1, x_MD.shape[-1]), scale_D, bias_D, eps)
    return y.reshape(x_MD.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x_MD: Array, scale_D: Array, bias_D: Array | None, eps: float) -> Array:
    return _layer_norm_forward(x_MD, scale_D, bias_D, eps)[0]


def _layer_norm_forward(x_MD: Array, scale_D: Array, bias_D: Array | None, eps: float):
    x = x_MD.astype(jnp.float32)
    mean_M1 = _row_mean(x)
    centred = x - mean_M1
    rstd_M1 = lax.rsqrt(_row_mean(jnp.square(centred)) + eps)
    y = centred * rstd_M1 * scale_D[None]
    if bias_D is not None:
        y = y + bias_D[None]
    return y.astype(x_MD.dtype), (x_MD, mean_M1, rstd_M1, scale_D, bias_D)


def _layer_norm_backward(eps: float, saved: tuple, dy_MD: Array):
    x_MD, mean_M1, rstd_M1, scale_D, bias_D = saved
    dy = dy_MD.astype(jnp.float32)
    normal = (x_MD.astype(jnp.float32) - mean_M1) * rstd_M1
    dnormal = dy * scale_D[None]
    dx = (dnormal - _row_mean(dnormal) - normal * _row_mean(dnormal * normal)) * rstd_M1
    dbias_D = None if bias_D is None else dy.sum(0)
    return dx.astype(x_MD.dtype), (dy * normal).sum(0), dbias_D


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _row_mean(x_MD: Array) -> Array:
    return x_MD.mean(-1, keepdims=True)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and divide the rest by `1 - rate`.

    The probability is exact to 2^-32. Without a key nothing is dropped: evaluation passes none.
    """
    if rate == 0.0 or key is None:
        return x
    dropped = jax.random.bits(key, x.shape, jnp.uint32) < jnp.uint32(rate * 2**32)
    return jnp.where(dropped, jnp.zeros_like(x), x / (1.0 - rate))

"""The elementwise arithmetic of a transformer: pure functions of arrays, no modules, no state.

Letters: M rows, D width. Statistics are float32, or float64 if an input is. Results have the type
of the input, and integers become float32. The backward passes are written out where autodiff would
keep more than it needs. jax has no forward mode for such functions, so `jax.jvp` and `jax.jacfwd`
refuse both GELUs and `layer_norm`. Compare gradients with finite differences by
`jax.test_util.check_grads(f, args, order=1, modes=["rev"])`; `jax.hessian` works.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gptjax.model.arguments import check_shapes, floating, not_negative, probability, wide

SQRT_2, SQRT_2_PI = 2**0.5, (2 * jnp.pi) ** 0.5
GELU_SCALE = (2 / jnp.pi) ** 0.5
GELU_CUBIC = 0.044715


def gelu(x: ArrayLike) -> Array:
    """Gaussian error linear unit in its tanh form, as GPT-1 and GPT-2 compute it; any shape.

    Hendrycks and Gimpel (2016), section 2: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`. The
    backward pass recomputes the tanh, so only `x` is kept.

    >>> gelu(jnp.array([0, 10])).tolist()  # integers count as float32
    [0.0, 10.0]
    """
    y: Any = _gelu(floating("x", x))
    return y


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    return _gelu_forward(x)[0]


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    # as a matrix and in this order, XLA has cuBLAS compute it while it writes the product before it
    x_MF = x.reshape(-1, *x.shape[-1:])
    inner_MF = GELU_SCALE * (x_MF + GELU_CUBIC * (x_MF * (x_MF * x_MF)))
    return (x_MF * (0.5 * (1 + jnp.tanh(inner_MF)))).reshape(x.shape), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x_wide = x.astype(wide(x))  # the square of 300 is beyond float16
    tanh = _gelu_tanh(x_wide)
    slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * jnp.square(x_wide))
    return ((dy * 0.5 * (1 + tanh + x_wide * (1 - jnp.square(tanh)) * slope)).astype(x.dtype),)


_gelu.defvjp(_gelu_forward, _gelu_backward)


def _gelu_tanh(x: Array) -> Array:
    return jnp.tanh(GELU_SCALE * x * (1 + GELU_CUBIC * jnp.square(x)))


def gelu_erf(x: ArrayLike) -> Array:
    """Gaussian error linear unit, exactly: `x` times the normal distribution's `Phi(x)`; any shape.

    Hendrycks and Gimpel (2016), section 2: `0.5 x (1 + erf(x / sqrt(2)))`, as nanoGPT and torch's
    `nn.GELU()` compute it. The backward pass recomputes the error function, so only `x` is kept.

    >>> gelu_erf(jnp.array([0, 10])).tolist()  # integers count as float32
    [0.0, 10.0]
    """
    y: Any = _gelu_erf(floating("x", x))
    return y


@jax.custom_vjp
def _gelu_erf(x: Array) -> Array:
    return _gelu_erf_forward(x)[0]


def _gelu_erf_forward(x: Array) -> tuple[Array, Array]:
    x_wide = x.astype(wide(x))
    return (x_wide * _normal_cdf(x_wide)).astype(x.dtype), x


def _gelu_erf_backward(x: Array, dy: Array) -> tuple[Array]:
    x_wide = x.astype(wide(x))
    density = jnp.exp(-0.5 * jnp.square(x_wide)) / SQRT_2_PI
    return ((dy * (_normal_cdf(x_wide) + x_wide * density)).astype(x.dtype),)


_gelu_erf.defvjp(_gelu_erf_forward, _gelu_erf_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x / SQRT_2))


def layer_norm(
    x_MD: ArrayLike,
    scale_D: ArrayLike | None = None,
    bias_D: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Array:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: [..., D] to [..., D].

    Ba et al. (2016), equation 4, with the biased variance. `scale_D` and `bias_D` may be left out.
    The backward pass keeps only `x` and two numbers a row. Raises `ValueError` if a width is not D.

    >>> layer_norm(jnp.array([[1, 3]])).round(2).tolist()
    [[-1.0, 1.0]]
    """
    x = floating("x_MD", x_MD)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x_MD has shape {x.shape}: expected [..., D]")
    eps = not_negative("eps", eps)
    scale, bias = _parameter("scale_D", scale_D), _parameter("bias_D", bias_D)
    check_shapes({"D": x.shape[-1]}, scale_D=scale, bias_D=bias)
    y: Any = _layer_norm(x.reshape(-1, x.shape[-1]), scale, bias, eps)
    return y.reshape(x.shape)


def _parameter(name: str, value: ArrayLike | None) -> Array | None:
    if value is None:
        return None
    parameter = floating(name, value)
    return parameter.astype(wide(parameter))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x_MD: Array, scale_D: Array | None, bias_D: Array | None, eps: float) -> Array:
    return _layer_norm_forward(x_MD, scale_D, bias_D, eps)[0]


def _layer_norm_forward(x_MD: Array, scale_D: Array | None, bias_D: Array | None, eps: float):
    x = x_MD.astype(wide(x_MD))
    mean_M1 = _row_mean(x)
    centred = x - mean_M1
    rstd_M1 = lax.rsqrt(_row_mean(jnp.square(centred)) + eps)
    y = centred * rstd_M1
    if scale_D is not None:
        y = y * scale_D[None]
    if bias_D is not None:
        y = y + bias_D[None]
    return y.astype(x_MD.dtype), (x_MD, mean_M1, rstd_M1, scale_D, bias_D)


def _layer_norm_backward(eps: float, saved: tuple, dy_MD: Array):
    x_MD, mean_M1, rstd_M1, scale_D, bias_D = saved
    dy = dy_MD.astype(rstd_M1.dtype)
    normal = (x_MD.astype(rstd_M1.dtype) - mean_M1) * rstd_M1
    dnormal = dy if scale_D is None else dy * scale_D[None]
    dx = (dnormal - _row_mean(dnormal) - normal * _row_mean(dnormal * normal)) * rstd_M1
    dbias_D = None if bias_D is None else dy.sum(0).astype(bias_D.dtype)
    dx = dx.astype(x_MD.dtype)
    if scale_D is None:
        return dx, None, dbias_D
    # XLA for GPUs computes a row's statistics inside the kernel that needs them. If the sum over
    # rows needed the same ones, another kernel would write `dy * normal` in float32 for it.
    normal = lax.platform_dependent(
        x_MD, normal, cpu=lambda _, normal: normal, default=lambda x, _: _normalised(x, eps)
    )
    return dx, (dy * normal).sum(0).astype(scale_D.dtype), dbias_D


def _normalised(x_MD: Array, eps: float) -> Array:
    """Rows with mean 0 and variance 1, from statistics that one pass over `x` finds."""
    x_MD = lax.optimization_barrier(x_MD)  # or XLA finds other statistics of it and shares them
    # No value is further from the mean than sqrt(D - 1) standard deviations, so the difference of
    # squares loses at most a factor D of precision. Without the shift there would be no bound.
    shifted = x_MD.astype(wide(x_MD)) - x_MD[:, :1].astype(wide(x_MD))
    mean_M1 = _row_mean(shifted)
    variance_M1 = jnp.maximum(_row_mean(jnp.square(shifted)) - jnp.square(mean_M1), 0)
    return (shifted - mean_M1) * lax.rsqrt(variance_M1 + eps)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _row_mean(x_MD: Array) -> Array:
    return x_MD.mean(-1, keepdims=True)


def dropout(x: ArrayLike, rate: ArrayLike, key: Array | None = None) -> Array:
    """Zero each element with probability `rate` and divide the rest by `1 - rate`.

    The probability is exact to 2^-32. Without a key nothing is dropped: evaluation passes none.
    Raises `ValueError` for a rate outside [0, 1), with or without a key. A traced rate is not
    checked.

    >>> kept = dropout(jnp.ones(1000, int), 0.75, jax.random.key(0))
    >>> sorted(set(kept.tolist()))
    [0.0, 4.0]
    """
    x, rate = floating("x", x), probability("rate", rate)
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    dropped = jax.random.bits(key, x.shape, jnp.uint32) < jnp.uint32(rate * 2.0**32)
    return jnp.where(dropped, jnp.zeros_like(x), (x / (1.0 - rate)).astype(x.dtype))

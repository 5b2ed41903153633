"""The two products of attention with the softmax's: narrow factors, float32 sums, both ways.

Autodiff would multiply the float32 gradient of the scores by narrow keys and queries, which GPUs do
without their tensor cores. Here it is rounded to their type first, as flash attention does. In
return the gradient of the weights is not rounded, so the error of the gradients does not grow.

Inside, keys and values have the head dim before time. Then no product and no gradient has to turn
an array of T x S scores, which costs processors a fifth of attention.

Letters: B batch, H heads, T query time, S key time, K head dim.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gptjax.model.arguments import check_shapes, floating, wide
from gptjax.model.products import dot_along_rows, dot_fp32_sum

ATTENDED = "attended"  # the name of what rematerialisation keeps of attention


def attention_scores(q_BHTK: ArrayLike, k_BHSK: ArrayLike) -> Array:
    """Every query times every key, divided by sqrt(K): [B, H, T, S].

    They are float32, or float64 if an input is, and are scaled in that.

    >>> attention_scores(jnp.ones((1, 1, 1, 4)), jnp.ones((1, 1, 2, 4))).tolist()
    [[[[2.0, 2.0]]]]
    """
    q, k = floating("q_BHTK", q_BHTK), floating("k_BHSK", k_BHSK)
    check_shapes(q_BHTK=q, k_BHSK=k)
    y: Any = _scores(q, k.swapaxes(2, 3))
    return y


@jax.custom_vjp
def _scores(q_BHTK: Array, k_BHKS: Array) -> Array:
    scores_BHTS = _product(q_BHTK, k_BHKS, (1, 0), wide(q_BHTK, k_BHKS))
    return scores_BHTS * q_BHTK.shape[-1] ** -0.5


def _scores_forward(q_BHTK: Array, k_BHKS: Array) -> tuple[Array, tuple[Array, Array]]:
    return _scores(q_BHTK, k_BHKS), (q_BHTK, k_BHKS)


def _scores_backward(saved: tuple[Array, Array], dscores_BHTS: Array) -> tuple[Array, Array]:
    q_BHTK, k_BHKS = saved
    dscores_BHTS = dscores_BHTS * q_BHTK.shape[-1] ** -0.5
    dscores_BHTS = dscores_BHTS.astype(jnp.result_type(q_BHTK, k_BHKS))
    dq_BHTK = _product(dscores_BHTS, k_BHKS, (1, 1), q_BHTK.dtype)
    return dq_BHTK, _product(q_BHTK, dscores_BHTS, (0, 0), k_BHKS.dtype)


_scores.defvjp(_scores_forward, _scores_backward)


def weighted_values(weights_BHTS: ArrayLike, v_BHSK: ArrayLike) -> Array:
    """The values, summed with weights that are rounded to their type: [B, H, T, K].

    >>> weighted_values(jnp.full((1, 1, 1, 2), 0.5), jnp.array([[[[1.0], [2.0]]]])).tolist()
    [[[[1.5]]]]
    """
    weights, v = floating("weights_BHTS", weights_BHTS), floating("v_BHSK", v_BHSK)
    check_shapes(weights_BHTS=weights, v_BHSK=v)
    y: Any = _weighted(weights, v.swapaxes(2, 3), weights.dtype)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weighted(weights_BHTS: Array, v_BHKS: Array, dtype: Any) -> Array:
    return _weighted_forward(weights_BHTS, v_BHKS, dtype)[0]


def _weighted_forward(
    weights_BHTS: Array, v_BHKS: Array, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    weights_BHTS = weights_BHTS.astype(v_BHKS.dtype)
    return _product(weights_BHTS, v_BHKS, (1, 1), v_BHKS.dtype), (weights_BHTS, v_BHKS)


def _weighted_backward(
    dtype: Any, saved: tuple[Array, Array], dy_BHTK: Array
) -> tuple[Array, Array]:
    weights_BHTS, v_BHKS = saved
    dweights_BHTS = _product(dy_BHTK, v_BHKS, (1, 0), dtype)
    return dweights_BHTS, _product(dy_BHTK, weights_BHTS, (0, 0), v_BHKS.dtype)


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _product(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    """`dot_fp32_sum` of the matrices of each row and head.

    Its form for CPUs, which is for narrow factors, is faster for many small wide ones as well.
    """
    multiply = partial(dot_fp32_sum, axes=axes, dtype=dtype)
    if a.dtype == wide(a, b):
        on_cpu = partial(dot_along_rows, axes=axes, dtype=dtype)
        multiply = partial(lax.platform_dependent, cpu=on_cpu, default=multiply)
    return jax.vmap(jax.vmap(multiply))(a, b)

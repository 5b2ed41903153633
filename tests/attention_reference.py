"""Attention by loops in NumPy, and inputs for comparing implementations with it."""

import jax
import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def reference_attention(q_BHTK, k_BHSK, v_BHSK, mask_TS):
    q, k, v = (np.asarray(x, np.float64) for x in (q_BHTK, k_BHSK, v_BHSK))
    y_BHTK = np.zeros(q.shape[:3] + v.shape[3:])
    for b, h, t in np.ndindex(q.shape[:3]):
        allowed = np.flatnonzero(mask_TS[t])
        scores = k[b, h, allowed] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        y_BHTK[b, h, t] = weights / weights.sum() @ v[b, h, allowed]
    return y_BHTK


def causal_inputs(time, head_dim=8):
    return tuple(normal(2, time, 3, head_dim, seed=i) for i in range(3))


def gradients(attend_causally, dy_BTHK, *inputs):
    """Gradients in q, k and v, compiled."""
    return jax.jit(lambda dy, *qkv: jax.vjp(attend_causally, *qkv)[1](dy))(dy_BTHK, *inputs)


def rounding_gradients(attend_causally, dy_BTHK, *inputs):
    """The same with every narrow array rounded as it is written, as GPUs do; CPUs might not."""
    backward = jax.jit(lambda dy, *qkv: jax.vjp(attend_causally, *qkv)[1](dy))
    options = {"xla_allow_excess_precision": False}
    return backward.lower(dy_BTHK, *inputs).compile(options)(dy_BTHK, *inputs)


def distances(arrays, others):
    """Norm of the difference of each pair, in float64."""
    pairs = zip(arrays, others, strict=True)
    return np.array([np.linalg.norm(np.float64(x) - np.float64(y)) for x, y in pairs])

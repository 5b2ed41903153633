"""A trial of one kind of attention on the first device: does it work here, and how long it takes.

Nothing else can tell: support depends on the card, the driver, the installed libraries and the
shape, and so does what is fastest.
"""

import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.config import ModelConfig
from gptjax.model.attention import ATTENTIONS
from gptjax.model.products import matmul_precision

ROWS = 4  # enough to fill a card with the heads of a small model
ROUNDS = 5
TOLERANCE = 2.0**-6  # relative; several roundings of bfloat16
KERNELS = ("cudnn", "pallas")  # they need a GPU


def try_attention(name: str, model: ModelConfig, context: int, inside: bool) -> float | str:
    """Seconds of a forward and backward pass, or the reason in words why it does not work here.

    It runs at the shape and type of the model, with its dropout, and `inside` documents if asked.
    Without dropout its results must be those of the portable attention.

    >>> type(try_attention("xla", ModelConfig(n_embd=24), 8, inside=False))
    <class 'float'>
    """
    if name in KERNELS and jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU, and this is {jax.default_backend()}"
    try:
        with jax.default_matmul_precision(matmul_precision(model, jax.devices()[0])):
            return _seconds(name, model, context, inside)
    except Exception as error:  # any failure has the same remedy: another kind of attention
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _seconds(name: str, model: ModelConfig, context: int, inside: bool) -> float | str:
    shape = (ROWS, context, model.n_head, model.head_dim)
    draw = np.random.default_rng(0).standard_normal
    arrays = [jnp.asarray(draw(shape, np.float32), model.dtype) for _ in range(4)]
    documents = None
    if inside:
        documents = jnp.tile((jnp.arange(context) >= context // 3).astype(jnp.int32), (ROWS, 1))
    both = partial(_forward_and_backward, documents=documents)
    results = jax.jit(partial(both, name))(*arrays)
    if name in KERNELS and (
        problem := _difference(results, jax.jit(partial(both, "auto"))(*arrays))
    ):
        return problem
    key = jax.random.key(0) if model.attn_pdrop else None
    run = jax.jit(partial(both, name, rate=model.attn_pdrop, key=key))
    if not all(bool(jnp.isfinite(x).all()) for x in jax.block_until_ready(run(*arrays))):
        return "its gradients are not finite"
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _forward_and_backward(
    name: str,
    q: Array,
    k: Array,
    v: Array,
    dy: Array,
    *,
    documents: Array | None,
    rate: float = 0.0,
    key: Array | None = None,
) -> tuple[Array, ...]:
    def attend(*qkv: Array) -> Array:
        return ATTENTIONS[name](*qkv, rate, key, documents)

    y, backward = jax.vjp(attend, q, k, v)
    return y, *backward(dy)


def _difference(results: tuple[Array, ...], expected: Any) -> str | None:
    """What is wrong with values and gradients, in words."""
    for what, x, y in zip(("values", "dq", "dk", "dv"), results, expected, strict=True):
        x, y = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, y))
        error = float(np.linalg.norm(x - y) / np.linalg.norm(y))
        if not error <= TOLERANCE:
            return f"its {what} are off by {error:.2g} of their size"
    return None

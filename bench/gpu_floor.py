"""The floor of an update on a GPU: its matrix products and its attention, each timed alone.

Shapes are those of `shapes.matrices`. What an update takes beyond their sum is everything else:
norms, GELUs, softmax and loss, the optimizer, launches, and waiting.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from shapes import Shape, matrices

from gptjax.model import size

LONG_ENOUGH_SECONDS = 0.2


def peak_flops() -> float | None:
    """The device's bfloat16 peak in FLOP/s; None for a device that is not in the table."""
    return size.peak_flops(jax.devices()[0].device_kind, "bfloat16")


def seconds_a_call(call: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Seconds of one call in each repeat, calls queued until a repeat is long enough to time."""
    jax.block_until_ready(call())
    started = time.perf_counter()
    jax.block_until_ready(call())
    once = time.perf_counter() - started
    calls = max(1, min(200, math.ceil(LONG_ENOUGH_SECONDS / max(once, 1e-9))))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        results = None
        for _ in range(calls):
            results = call()
        jax.block_until_ready(results)
        seconds.append((time.perf_counter() - started) / calls)
    return seconds


def linear(tokens: int, inputs: int, outputs: int, dtype: str) -> tuple[Callable[[], Any], float]:
    """A linear layer's three products (output, both gradients) as one call, and its FLOPs."""
    kind, keys = jnp.dtype(dtype), jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, inputs), kind)
    w = jax.random.normal(keys[1], (inputs, outputs), kind)
    dy = jax.random.normal(keys[2], (tokens, outputs), kind)
    products = jax.jit(lambda x, w, dy: (x @ w, dy @ w.T, x.T @ dy))
    return lambda: products(x, w, dy), 3 * 2.0 * tokens * inputs * outputs


def flash(shape: Shape, implementation: str) -> tuple[Callable[[], Any], float]:
    """Causal attention of one layer, forward and backward, and its FLOPs (half of the square).

    `implementation` is jax's: cudnn or xla.
    """
    size = (shape.batch, shape.n_ctx, shape.n_head, shape.n_embd // shape.n_head)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dy = (jax.random.normal(key, size, jnp.dtype(shape.dtype)) for key in keys)
    chosen: Any = implementation

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=chosen)

    @jax.jit
    def both(q, k, v, dy):
        y, backward = jax.vjp(attend, q, k, v)
        return y, backward(dy)

    flops = 3 * 2 * 2.0 * shape.batch * shape.n_ctx**2 * shape.n_embd / 2
    return lambda: both(q, k, v, dy), flops


def floor(shape: Shape) -> dict[str, Any]:
    """Seconds and FLOP/s of every piece, and `seconds`, their sum over one update of `shape`."""
    pieces: dict[str, Any] = {}
    tokens = shape.batch * shape.n_ctx
    for name, (inputs, outputs, count) in matrices(shape).items():
        call, flops = linear(tokens, inputs, outputs, shape.dtype)
        pieces[name] = _piece(seconds_a_call(call), flops, count)
    is_gpu = jax.default_backend() == "gpu"
    call, flops = flash(shape, "cudnn" if is_gpu else "xla")
    name = "attention, cudnn" if is_gpu else "attention, xla (cudnn skipped: this is no GPU)"
    pieces[name] = _piece(seconds_a_call(call), flops, shape.n_layer)
    total = sum(p["seconds"] * p["count"] for p in pieces.values()) * shape.micro_steps
    return {"pieces": pieces, "seconds": total}


def _piece(seconds: list[float], flops: float, count: int) -> dict[str, Any]:
    best = sorted(seconds)[len(seconds) // 2]
    return {"seconds": best, "rounds": seconds, "count": count, "tflops": flops / best / 1e12}

"""The floor of a train step: its matrix products and its attention alone, in plain jax.

A step cannot be faster than its products and flash attention, which vendors' libraries compute.
The functions build sides for `worker.py`: each returns a round and a dict of facts.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from harness import Figures, Round
from shapes import Shape, loss_chunk_tokens

from gptjax.cluster.environment import claim_memory
from gptjax.training.autotune import gpu_memory

MULTIPLE = 128  # gptjax and torch's users pad the vocabulary to it


def step(shape: dict, repeats: int) -> tuple[Round, dict]:
    """Seconds of one step's products and attention, each program run `repeats` times in a row.

    A layer has four products forwards, four for the gradients of their inputs and four for those of
    their weights, which leave in float32; the head has three for every chunk of tokens. Attention
    runs once forwards and once backwards. All factors are different arrays, so that nothing is
    computed once for two.
    """
    claim_memory()  # as the step does: the length of a chunk follows from this share
    sizes = Shape(**shape)
    dtype = jnp.dtype(sizes.dtype)
    rows, width = sizes.batch * sizes.n_ctx, sizes.n_embd
    vocab = -(-sizes.n_vocab // MULTIPLE) * MULTIPLE
    chunk = min(loss_chunk_tokens(sizes, gpu_memory()) or rows, rows)
    key = iter(jax.random.split(jax.random.key(0), 64))

    def drawn(*dimensions: int) -> jax.Array:
        return jax.random.normal(next(key), dimensions, dtype)

    wide = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    layer = [(drawn(rows, m), drawn(m, n), drawn(rows, n)) for m, n in wide]
    head = [(drawn(chunk, width), drawn(width, vocab), drawn(chunk, vocab))]
    heads = sizes.batch, sizes.n_ctx, sizes.n_head, width // sizes.n_head
    queries = tuple(drawn(*heads) for _ in range(4))
    attention, kind = _attention(queries)
    calls = sizes.micro_steps * sizes.n_layer
    chunks = sizes.micro_steps * rows // chunk
    products = jax.jit(_products)

    def one_round() -> Figures:
        layers = calls * _seconds(products, (layer,), repeats)
        heads = chunks * _seconds(products, (head,), repeats)
        attended = calls * _seconds(attention, queries, repeats)
        total = layers + heads + attended
        return {"seconds": total, "layers": layers, "head": heads, "attention": attended}

    one_round()
    flops = 6.0 * sizes.micro_steps * rows * (12 * sizes.n_layer * width**2 + width * vocab)
    return one_round, {"attention": kind, "flops": flops}


def _products(factors: list[tuple[jax.Array, jax.Array, jax.Array]]) -> list[jax.Array]:
    """For x [M, K], weights [K, N], gradient [M, N]: the output and both gradients."""
    found = []
    for x, weights, gradient in factors:
        found.append(x @ weights)
        found.append(gradient @ weights.T)
        found.append(jnp.matmul(x.T, gradient, preferred_element_type=jnp.float32))
    return found


def _attention(queries: tuple[jax.Array, ...]) -> tuple[Callable[..., Any], str]:
    """Causal attention forwards and backwards, and its kind: cuDNN's, or XLA's without it."""

    def both(kind: Any) -> Callable[..., Any]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)

        def run(q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array) -> Any:
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(gradient)

        return jax.jit(run)

    if jax.default_backend() == "gpu":
        try:
            compiled = both("cudnn")
            jax.block_until_ready(compiled(*queries))
            return compiled, "cudnn"
        except (RuntimeError, ValueError, NotImplementedError):
            pass  # this card or this type has none
    return both("xla"), "xla"


def _seconds(function: Callable[..., Any], arguments: tuple, repeats: int) -> float:
    """Mean time of a call, with one wait at the end of all."""
    jax.block_until_ready(function(*arguments))
    started, found = time.perf_counter(), None
    for _ in range(repeats):
        found = function(*arguments)
    jax.block_until_ready(found)
    return (time.perf_counter() - started) / repeats


def bandwidth(megabytes: int) -> tuple[Round, dict]:
    """Bytes a second that a copy reads and writes."""
    numbers, copy = jnp.ones(megabytes * 250_000), jax.jit(lambda x: x + 1)

    def one_round() -> Figures:
        seconds = _seconds(copy, (numbers,), 5)
        return {"seconds": seconds, "bandwidth": 2 * numbers.nbytes / seconds}

    one_round()
    return one_round, {}

"""gptjax's train step as a side: only what compiling and running a step needs is imported.

Neither Grain nor Orbax nor tyro has to be installed. `train` builds a side for `worker.py`: it
returns a round and a dict of facts.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import Round
from shapes import Shape, loss_chunk_tokens, model_config

from gptjax.cluster.compiler import compiler_options, keep_freed_memory
from gptjax.cluster.environment import claim_memory
from gptjax.cluster.mesh import BatchLayout, make_mesh, put_rows
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.model.size import parameter_count
from gptjax.training.autotune import choose_attention, gpu_memory
from gptjax.training.program import assemble

MAX_STEPS = 10_000


class TrainStep:
    """The trainer's own step on one device, compiled; only `run` needs parameters."""

    def __init__(self, shape: Shape):
        self.shape, model = shape, model_config(shape)
        attention, self.attention_reason = choose_attention(model, shape.n_ctx)
        chunk = loss_chunk_tokens(shape, gpu_memory())
        train = TrainConfig(max_steps=MAX_STEPS, loss_chunk_tokens=chunk, updates_per_call=1)
        model = replace(model, attention=attention)
        self.config = Config(model=model, optim=OptimConfig(warmup_steps=10), train=train)
        self.program = assemble(self.config, make_mesh(1))
        layout = BatchLayout(shape.micro_steps, shape.batch, 1, shape.n_ctx)
        state, batch, key = self.program.arguments(layout)
        self._key = self.program.key()
        if shape.prng is not None:
            self._key = jax.device_put(jax.random.key(0, impl=shape.prng))
            key = self._key
        traced = self.program.train_step.trace(state, batch, key)
        self.product_flops = product_flops(traced.jaxpr)
        started = time.perf_counter()
        self._compiled = traced.lower().compile(compiler_options(self.program.mesh))
        self.compile_seconds = time.perf_counter() - started
        self.state: Any = None

    @property
    def hlo(self) -> str:
        """The text of the compiled program."""
        return self._compiled.as_text() or ""

    def start(self) -> None:
        """Draw parameters and put the batch on the device."""
        self.state, shape = self.program.initial_state(), self.shape
        size = (shape.micro_steps, shape.batch, shape.n_ctx + 1)
        tokens = np.random.default_rng(0).integers(0, shape.n_vocab, size, dtype=np.int32)
        self._batch = put_rows(self.program.mesh, {"tokens": tokens}, axis=1)

    def run(self, steps: int) -> float:
        """Wall seconds of `steps` steps, with the loss fetched a step late as in the trainer."""
        if self.state is None:
            self.start()
        started, previous = time.perf_counter(), None
        for _ in range(steps):
            self.state, metrics = self._compiled(self.state, self._batch, self._key)
            if previous is not None:
                float(previous)
            previous = metrics["loss"]
        jax.block_until_ready((self.state, previous))
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """Bytes of one step as the compiler reports, FLOPs of its products, compile time."""
        memory = self._compiled.memory_analysis()
        assert memory is not None  # CPUs and GPUs tell
        return {
            "attention": f"{self.config.model.attention} ({self.attention_reason})",
            "loss_chunk_tokens": self.config.train.loss_chunk_tokens,
            "temp_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
            "flops": self.product_flops,
            "compile_seconds": self.compile_seconds,
        }


def product_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products of a jaxpr, with those of a scan times its length.

    XLA's own count takes every loop as one iteration. Here the most expensive branch counts, and a
    while loop, whose length is unknown, counts once.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple) else (p,))]
        inner = [product_flops(v) for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * eqn.params.get("length", 1)
    return total


def train(shape: dict, steps: int, warm: int = 3, hlo: str | None = None) -> tuple[Round, dict]:
    """`steps` steps a round, after `warm` untimed ones; the program's text goes to file `hlo`."""
    claim_memory()  # this and the next as the train verb does
    keep_freed_memory(parameter_count(model_config(Shape(**shape))))
    step = TrainStep(Shape(**shape))
    if hlo is not None:
        Path(hlo).write_text(step.hlo)
    step.run(warm)
    return lambda: {"seconds": step.run(steps)}, step.facts()


def start(shape: dict, cache: str) -> tuple[Round, dict]:
    """The first step of a process, with compiled programs kept in `cache`; a round does nothing.

    The time from the start of the process to its facts is what it measures.
    """
    claim_memory()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    step = TrainStep(Shape(**shape))
    step.run(1)
    return dict, {"compile_seconds": step.compile_seconds}

"""gptjax's side of every comparison: the one place that calls its functions.

Each function builds a side for `worker.py`: it returns a round and a dict of facts.
"""

import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import Figures, Round, Skipped, cores, plain_environment
from shapes import Shape, model_config

from gptjax.base.errors import UserError
from gptjax.cluster.compiler import compiler_options, keep_freed_memory
from gptjax.cluster.mesh import BatchLayout, make_mesh, put_rows
from gptjax.config import Config, DataConfig, OptimConfig, TrainConfig
from gptjax.config.batches import BatchSchedule
from gptjax.data.loader import StepSource, batches_from
from gptjax.data.manifest import read_manifest
from gptjax.data.windows import TokenWindows
from gptjax.model.size import parameter_count
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs
from gptjax.runs.checkpoint import Checkpointer
from gptjax.tokenizers.registry import make_tokenizer
from gptjax.training.autotune import choose_attention
from gptjax.training.optimizer import make_optimizer
from gptjax.training.program import assemble
from gptjax.training.state import initial_state, saved_items

MAX_STEPS = 10_000


class TrainStep:
    """The trainer's own step on one device, compiled; only `run` needs parameters."""

    def __init__(self, shape: Shape):
        self.shape, model = shape, model_config(shape)
        attention, self.attention_reason = choose_attention(model, shape.n_ctx)
        train = TrainConfig(
            max_steps=MAX_STEPS, loss_chunk_tokens=shape.loss_chunk_tokens, updates_per_call=1
        )
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
        self._state: Any = None

    def start(self) -> None:
        """Draw parameters and put the batch on the device."""
        self._state, shape = self.program.initial_state(), self.shape
        size = (shape.micro_steps, shape.batch, shape.n_ctx + 1)
        tokens = np.random.default_rng(0).integers(0, shape.n_vocab, size, dtype=np.int32)
        self._batch = put_rows(self.program.mesh, {"tokens": tokens}, axis=1)

    def run(self, steps: int) -> float:
        """Wall seconds of `steps` steps, with the loss fetched a step late as in the trainer."""
        if self._state is None:
            self.start()
        started, previous = time.perf_counter(), None
        for _ in range(steps):
            self._state, metrics = self._compiled(self._state, self._batch, self._key)
            if previous is not None:
                float(previous)
            previous = metrics["loss"]
        jax.block_until_ready((self._state, previous))
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """Bytes of one step as the compiler reports, FLOPs of its products, compile time."""
        memory = self._compiled.memory_analysis()
        assert memory is not None  # CPUs and GPUs tell
        return {
            "attention": f"{self.config.model.attention} ({self.attention_reason})",
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


def train(shape: dict, steps: int, warm: int = 3) -> tuple[Round, dict]:
    """`steps` steps a round, after `warm` untimed ones."""
    keep_freed_memory(parameter_count(model_config(Shape(**shape))))  # as the train verb does
    step = TrainStep(Shape(**shape))
    step.run(warm)
    return lambda: {"seconds": step.run(steps)}, step.facts()


def load(data: str, context: int, rows: int, steps: int) -> tuple[Round, dict]:
    """`steps` shuffled batches of `rows` windows through Grain, as in the training loop."""
    windows = TokenWindows(read_manifest(Path(data)), "train", context)
    source = StepSource(windows, BatchSchedule(rows, rows, 0), 2**31, seed=0)
    position = 0

    def one_round() -> Figures:
        nonlocal position
        started = time.perf_counter()
        with batches_from(source, position) as batches:
            for _ in range(steps):
                assert next(batches)["tokens"].shape == (rows, context + 1)
        position += steps
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {"windows": len(windows)}


def encode(texts: Sequence[str]) -> tuple[Round, dict]:
    """Documents through the gpt2 tokenizer in a pool of threads, one per core."""
    try:
        tokenizer = make_tokenizer("gpt2")
    except UserError as error:
        raise Skipped(str(error)) from error
    documents = [Path(path).read_text() for path in texts]
    pool = ThreadPoolExecutor(cores())

    def one_round() -> Figures:
        started = time.perf_counter()
        count = sum(len(ids) for ids in pool.map(tokenizer.encode, documents))
        return {"seconds": time.perf_counter() - started, "tokens": count}

    return one_round, {}


def prepare_texts(texts: Sequence[str], directory: str) -> tuple[Round, dict]:
    """The whole of `prepare_shards`: read, hash, split, tokenise, write shards."""
    try:
        make_tokenizer("gpt2")
    except UserError as error:
        raise Skipped(str(error)) from error
    out = Path(directory) / "prepared"

    def one_round() -> Figures:
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        data = DataConfig(path=str(out), tokenizer="gpt2", inputs=tuple(texts))
        manifest = prepare_shards(data, find_inputs(data))
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": sum(s.tokens for s in manifest.splits.values())}

    return one_round, {}


def prepare_file(path: str, directory: str) -> tuple[Round, dict]:
    """The command on one file, with start-up; `memory` is the sum of its processes' peaks."""
    try:
        make_tokenizer("gpt2")
    except UserError as error:
        raise Skipped(str(error)) from error
    out = Path(directory) / "prepared"
    verb = [sys.executable, "-m", "gptjax.prepare", "--input", path, "--out", str(out)]

    def one_round() -> Figures:
        shutil.rmtree(out, ignore_errors=True)
        peaks: dict[int, int] = {}
        started = time.perf_counter()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*verb, "--tokenizer", "gpt2"], env=plain_environment(), stdout=said, stderr=said
            )
            while process.poll() is None:
                peaks |= _memory_peaks(process.pid)
                time.sleep(0.05)
            seconds = time.perf_counter() - started
            said.seek(0)
            assert process.returncode == 0, said.read().decode()
        manifest = read_manifest(out)
        tokens = sum(split.tokens for split in manifest.splits.values())
        return {"seconds": seconds, "tokens": tokens, "memory": 1024 * sum(peaks.values())}

    return one_round, {}


def _memory_peaks(pid: int) -> dict[int, int]:
    """The largest resident memory so far of a process and all below it, in kB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return {}
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    peaks = {pid: int(peak[1])} if peak else {}
    for child in children:
        peaks |= _memory_peaks(int(child))
    return peaks


def save(shape: dict, directory: str) -> tuple[Round, dict]:
    """A checkpoint a round: seconds that `save` delays the loop, and until it is safe on disk."""
    model, optim = model_config(Shape(**shape)), OptimConfig()
    keep_freed_memory(parameter_count(model))  # as the train verb does
    state = initial_state(model, make_optimizer(optim, MAX_STEPS), 0, make_mesh(1))
    checkpointer = Checkpointer(Path(directory) / "checkpoints", keep_latest=1)
    step = 0

    def one_round() -> Figures:
        nonlocal step
        step += 1
        started = time.perf_counter()
        checkpointer.save(step, saved_items(state), {}, {"data": "", "val_loss": None})
        stall = time.perf_counter() - started
        checkpointer.wait()
        return {"seconds": stall, "until_safe": time.perf_counter() - started}

    one_round()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    return one_round, {"bytes": size}

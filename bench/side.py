"""gptjax's sides beside the step (`step_side`) and the engine: data, tokenizer, checkpoints.

Each function builds a side for `worker.py`: it returns a round and a dict of facts.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from harness import Figures, Round, Skipped, cores, plain_environment
from shapes import Shape, model_config

from gptjax.base.errors import UserError
from gptjax.cluster.compiler import keep_freed_memory
from gptjax.cluster.mesh import make_mesh
from gptjax.config import DataConfig, OptimConfig
from gptjax.config.batches import BatchSchedule
from gptjax.data.loader import StepSource, batches_from
from gptjax.data.manifest import read_manifest
from gptjax.data.windows import TokenWindows
from gptjax.model.size import parameter_count
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs
from gptjax.runs.checkpoint import Checkpointer
from gptjax.tokenizers.registry import make_tokenizer
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import initial_state, saved_items

MAX_STEPS = 10_000


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

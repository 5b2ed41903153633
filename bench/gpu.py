"""Everything there is to know about gptjax on one GPU, in one command and eight minutes.

    python bench/gpu.py --out figures
    python bench/gpu.py --out figures --text corpus.txt --minutes 8
    python bench/gpu.py --dry-run                       # toy sizes, on a CPU

First the floor, the matrix products and the attention of gpt2_124m timed alone; then the update
(bfloat16, context 1024) with its MFU and how much of it the floor explains; flash against other
attention; the loss in chunks; unrolled against scanned layers; a training on real text with its
curve; cold and warm start; GPT-2 XL; the micro-batch that `auto` takes; dropout's generators.

Sections go by importance, each in a process of its own with its own limit and JSON; one that fails
or runs over is recorded in gpu.json and the rest go on; none starts that has too little time left.
The text is `--text`, else the source of Python's standard library; its tokens are gpt2's where that
tokenizer can be loaded, else a BPE of its own.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from gpu_sections import SECTIONS
from harness import BENCH, Report, plain_environment

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import standard_library, text_files
from gptjax.tokenizers.registry import make_tokenizer

LIMITS = {"training": 130, "largest": 140, "start": 110}  # seconds; the others have DEFAULT_LIMIT
DEFAULT_LIMIT = 80
LEAST_SECONDS = 20  # what a section needs to be worth starting
OWN_BPE = "bpe:16384"


@dataclass(frozen=True)
class Command:
    """Measure on this machine's first GPU."""

    out: Path = Path("gpu_figures")
    """Directory for one JSON file a section, and the curve."""
    text: Path | None = None
    """UTF-8 text to train on; None takes Python's standard library."""
    minutes: float = 8.0
    """Wall time in all."""
    dry_run: bool = False
    """Toy sizes: shows on any machine that every section runs."""
    only: tuple[str, ...] = ()
    """Sections to run, by name; none means all."""


def main(command: Command) -> int:
    """Run the sections in order; 1 if any failed."""
    deadline = time.monotonic() + command.minutes * 60
    command.out.mkdir(parents=True, exist_ok=True)
    if unknown := set(command.only) - set(SECTIONS):
        print(f"no section {', '.join(sorted(unknown))}: expected of {', '.join(SECTIONS)}")
        return 1
    outcomes: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gptjax-gpu-")))
        options = {"out": str(command.out), "work": str(work), "dry": command.dry_run}
        preparing = stack.enter_context(ThreadPoolExecutor(1)).submit(_prepare, command, work)
        for name in command.only or SECTIONS:
            if name != "floor":
                wait([preparing])  # nothing but the floor, which is the GPU's alone, runs beside it
            left = deadline - time.monotonic()
            if left < LEAST_SECONDS:
                outcomes[name] = {"outcome": f"skipped: {left:.0f} s were left", "seconds": 0.0}
                continue
            print(f"--- {name} ({left:.0f} s left)", flush=True)
            started = time.monotonic()
            limit = min(left, LIMITS.get(name, DEFAULT_LIMIT))
            outcome = _run(name, options, limit)
            outcomes[name] = {"outcome": outcome, "seconds": time.monotonic() - started}
        failure = preparing.exception()
    text = f"text failed: {failure}" if failure else preparing.result()
    report = Report("gpu", f"Sections; {text}", ("section", "outcome", "seconds"))
    for name, outcome in outcomes.items():
        report.rows.append((name, outcome["outcome"], f"{outcome['seconds']:.0f}"))
    report.figures = outcomes
    report.publish(command.out)
    return int(any(o["outcome"].startswith(("failed", "stopped")) for o in outcomes.values()))


def _run(name: str, options: dict[str, Any], limit: float) -> str:
    """One section as a process group that is ended when its time is up."""
    environment = plain_environment()
    if not options["dry"]:
        # sections share compiled programs; `start` has caches of its own
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(options["work"]) / "cache"))
    words = [sys.executable, str(BENCH / "gpu_sections.py"), name, json.dumps(options)]
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def _prepare(command: Command, work: Path) -> str:
    """Tokenise the text on the CPU; says what was made."""
    documents, inputs = standard_library(), ()
    if command.text is not None or command.dry_run:
        inputs = _inputs(command)
        documents = text_files(inputs)
    name = "bytes" if command.dry_run else _tokenizer()
    data = DataConfig(path=str(work / "data"), tokenizer=name, inputs=inputs, val_fraction=0.1)
    manifest = prepare_shards(data, documents)
    train = manifest.splits["train"].tokens
    return f"{train:,} training tokens of {manifest.tokenizer}"


def _inputs(command: Command) -> tuple[str, ...]:
    paths: Sequence[Path] = [command.text] if command.text else sorted(BENCH.glob("*.py"))
    return tuple(map(str, paths))


def _tokenizer() -> str:
    try:
        return make_tokenizer("gpt2").name
    except UserError:
        return OWN_BPE


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))

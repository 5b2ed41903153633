"""Measures gptjax on one GPU, in one command and eight minutes.

    python bench/gpu.py --out figures
    python bench/gpu.py --out figures --text corpus.txt --minutes 8
    python bench/gpu.py --dry-run                       # toy sizes, on a CPU

It measures the step of gpt2_124m (bfloat16, context 1024) with its MFU; flash and other attention;
the loss in chunks; unrolled and scanned layers; training on real text, with its curve and the
micro-batch that `auto` takes; cold and warm start; GPT-2 XL; dropout's generators.

These are the programs of run.py with a GPU's shapes, in order of importance, each with a time limit
and a JSON file. If one fails or runs over its limit, gpu.json says so and the rest go on; a program
starts only if enough time is left. The text is `--text`, else the source of Python's standard
library; its tokens are gpt2's if that tokenizer can be loaded, else those of a BPE trained on it.
"""

import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trainer
import tyro
from computing import VARIANT_COLUMNS, in_chunks, variants
from harness import Plan, Report
from run import Program, report_outcomes, run_programs
from shapes import TOY, Shape, gpt2
from trainer import own_text, prepare

LIMIT = 180  # seconds of one program


@dataclass(frozen=True)
class Command:
    """Measure on this machine's first GPU."""

    out: Path = Path("gpu_figures")
    """Directory for one JSON file a program, and the curve."""
    text: Path | None = None
    """UTF-8 text to train on; None takes Python's standard library."""
    minutes: float = 8.0
    """Wall time in all."""
    dry_run: bool = False
    """Toy sizes: shows on any machine that every program runs."""
    only: tuple[str, ...] = ()
    """Programs to run, by name; none means all."""


def step_variants(quick: bool) -> dict[str, dict[str, Shape]]:
    """Steps by program and variant; a variant differs from the first one as its name says."""
    whole = gpt2("124M", 1024, 32, micro_steps=2, dtype="bfloat16")
    if quick:
        whole = replace(TOY, micro_steps=2, loss_chunk_tokens=32)
    # Half the batch: variants are in memory side by side. Scanned: each variant is compiled.
    half = replace(whole, batch=whole.batch // 2, unroll=1)
    kinds = ["xla", "blockwise"] if quick else ["cudnn", "xla", "blockwise"]
    tiles = replace(half, attention="blockwise")  # cudnn drops no attention weights
    generators = ("threefry2x32", "philox2x32", "rbg", "unsafe_rbg")
    larger: dict[str, Any] = {"dtype": "bfloat16", "remat": "block", "unroll": 1}
    sizes = {n: gpt2(n, 1024, 8, **larger) for n in ("1558M", "774M", "355M")}
    return {
        "step": {"as trained": whole},
        "attention": {kind: replace(half, attention=kind) for kind in kinds},
        "loss": in_chunks(half, [16] if quick else [2048, 8192]),
        "unroll": {"unrolled": whole, "scanned": replace(whole, unroll=1)},
        "largest": {"toy": replace(TOY, **larger)} if quick else sizes,
        "dropout": {"no dropout": tiles}
        | {name: replace(tiles, dropout=0.1, prng=name) for name in generators},
    }


def steps(plan: Plan, name: str) -> None:
    """The variants of one name in turns; the larger models one after the other."""
    shapes = step_variants(plan.quick)[name]
    title = f"{name}: steps of {next(iter(shapes.values()))} and its variants"
    report = Report(f"gpu_{name}", title, VARIANT_COLUMNS)
    variants(plan, report, shapes, 4, 2 if plan.quick else 10, together=name != "largest")
    report.publish(plan.out)


def training(plan: Plan) -> None:
    """200 steps of the train command on real text, with the largest micro-batch and the curve."""
    count, words = (6, ["--config", "tiny"]) if plan.quick else (200, ["--config", "gpt2_124m"])
    text = ["--input", str(plan.text)] if plan.text else ["--config", "quickstart"]  # its stdlib
    try:
        prepared = own_text("bytes") if plan.quick else [*text, "--tokenizer", "gpt2"]
        words += prepare(plan.scratch, prepared)
    except RuntimeError:  # that tokenizer must be fetched
        words += prepare(plan.scratch, [*text, "--tokenizer", "bpe:16384"])
    if not plan.quick:
        words += ["--train.batch-tokens", str(2**16), "--train.micro-batch", "auto"]
    words += ["--train.max-steps", str(count), "--optim.warmup-steps", str(count // 5)]
    words += ["--train.eval-every-steps", str(count // 2), "--train.eval-tokens", str(2**18)]
    words += ["--train.save-every-steps", "0", "--train.sample-every-steps", "0"]
    run = trainer.train(plan.scratch, words)
    columns = ("first loss", "last loss", "validation", "tokens/s, median")
    report = Report(
        "gpu_training", f"{count} steps on real text", columns, figures={"rows": run.rows}
    )
    first, last, rates = run.rows[0], run.rows[-1], [r.get("tokens_per_second") for r in run.rows]
    losses = [f"{v:.3f}" for v in (first["train_loss"], last["train_loss"], last["val_loss"])]
    report.rows.append((*losses, f"{statistics.median(filter(None, rates)):,.0f}"))
    report.notes += [s for s in run.said.splitlines() if s.startswith("batch ") or "(auto" in s]
    report.publish(plan.out)
    if plan.out is not None:
        shutil.copy(plan.scratch / "run" / "loss.png", plan.out / "gpu_training_loss.png")


PROGRAMS: dict[str, Program] = {
    **{name: partial(steps, name=name) for name in ("step", "attention", "loss", "unroll")},
    "training": training,
    "startup": partial(trainer.start, rounds=1),
    **{name: partial(steps, name=name) for name in ("largest", "dropout")},
}


def main(command: Command) -> int:
    """Run the programs in order; 1 if any failed."""
    command.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gptjax-gpu-") as work:
        # programs share a cache of compiled programs; whole trainings have their own caches
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(work) / "cache"))
        text = command.text.resolve() if command.text else None
        limit = command.minutes * 60 if command.dry_run else LIMIT
        plan = Plan(command.dry_run, Path(work), command.out, text)
        outcomes = run_programs(PROGRAMS, command.only, plan, command.minutes * 60, limit)
    report = Report("gpu", "Programs", ("program", "outcome", "seconds"))
    report.rows = [(name, o["outcome"], f"{o['seconds']:.0f}") for name, o in outcomes.items()]
    report.figures = outcomes
    report.publish(command.out)
    return report_outcomes(outcomes)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))

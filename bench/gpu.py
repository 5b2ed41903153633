"""Measures gptjax on one GPU, in one command and eight minutes.

    python bench/gpu.py --out figures
    python bench/gpu.py --out figures --text corpus.txt --minutes 8
    python bench/gpu.py --only torch startup
    python bench/gpu.py --dry-run                       # toy sizes, on a CPU

It measures the step of gpt2_124m (bfloat16, context 1024) beside the floor of its matrix products
and its attention, and beside the roofline of the compiled program; the same step in torch.compile;
cold and warm start; decoding; GPT-2 355M, 774M and 1558M, as far as they fit; flash and other
attention, the loss in chunks, unrolled and scanned layers, dropout's generators; and the train
command on real text, with its curve and the micro-batch that `auto` takes.

Programs run in order of importance, each with a time limit and a JSON file. If one fails or runs
over its limit, gpu.json says so and the rest go on; a program starts only if enough time is left.
After each of them gpu.md has all tables so far, ready for bench/RESULTS.md. jax 0.10 to 0.12 with
flax and optax is enough. Only the last program needs more (Grain, tyro): it prepares `--text`, else
the source of Python's standard library, by gpt2's tokenizer, or by a BPE trained on it if gpt2's
cannot be loaded.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import trainer
from card import ROUNDS, beside_torch, decode, startup, step, whole
from computing import VARIANT_COLUMNS, in_chunks, variants
from harness import Plan, Report, Skipped, machine
from programs import Program, report_outcomes, run_programs
from shapes import Shape
from trainer import own_text, prepare

LIMIT = 150  # seconds of one program


def step_variants(quick: bool) -> dict[str, dict[str, Shape]]:
    """Steps by program and variant; a variant differs from the first one as its name says."""
    shape = replace(whole(quick), micro_steps=2)
    # Half the batch: variants are in memory side by side. Scanned: each variant is compiled.
    half = replace(shape, batch=shape.batch // 2, unroll=1)
    kinds = ["xla", "blockwise"] if quick else ["cudnn", "pallas", "xla", "blockwise"]
    # kinds that can drop attention weights
    tiles = replace(half, attention="blockwise" if quick else "pallas")
    generators = ("threefry2x32", "philox2x32", "rbg", "unsafe_rbg")
    return {
        "attention": {kind: replace(half, attention=kind) for kind in kinds},
        "loss": in_chunks(half, [16] if quick else [2048, 8192]),
        "unroll": {"unrolled": shape, "scanned": replace(shape, unroll=1)},
        "dropout": {"no dropout": tiles}
        | {name: replace(tiles, dropout=0.1, prng=name) for name in generators},
    }


def varied(plan: Plan, name: str) -> None:
    """The variants of one name in turns."""
    shapes = step_variants(plan.quick)[name]
    title = f"{name}: steps of {next(iter(shapes.values()))} and its variants"
    report = Report(f"gpu_{name}", title, VARIANT_COLUMNS)
    variants(plan, report, shapes, ROUNDS, 2 if plan.quick else 10)
    report.publish(plan.out)


def command(plan: Plan) -> None:
    """100 steps of the train command on real text, twice: with an empty cache and with a full one.

    The table is there after the first; the curve and the micro-batch of `auto` come from it.
    """
    if missing := [name for name in ("grain", "tyro", "orbax") if find_spec(name) is None]:
        raise Skipped(f"the train command needs {', '.join(missing)}")
    count, words = (6, ["--config", "tiny"]) if plan.quick else (100, ["--config", "gpt2_124m"])
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
    columns = ("start", "to the first step, s", "first loss", "last loss", "validation", "tokens/s")
    report = Report("gpu_command", f"{count} steps of the train command on real text", columns)
    for kind in ("cold", "warm"):
        run = trainer.train(plan.scratch, words)
        rows, rates = run.rows, [row.get("tokens_per_second") for row in run.rows]
        losses = rows[0]["train_loss"], rows[-1]["train_loss"], rows[-1]["val_loss"]
        rate = statistics.median(filter(None, rates))
        shown = (f"{run.reached:.1f}", *(f"{loss:.3f}" for loss in losses), f"{rate:,.0f}")
        report.rows.append((kind, *shown))
        report.figures[kind] = {"rows": rows, "reached": run.reached}
        for line in run.said.splitlines():
            if line.startswith("batch ") or "(auto" in line:
                report.note(line)
        report.publish(plan.out)
        if plan.out is not None:
            shutil.copy(plan.scratch / "run" / "loss.png", plan.out / "gpu_command_loss.png")


PROGRAMS: dict[str, Program] = {
    "124M": partial(step, size="124M"),
    "torch": beside_torch,
    "startup": startup,
    "decode": decode,
    **{size: partial(step, size=size) for size in ("1558M", "355M", "774M")},
    **{name: partial(varied, name=name) for name in ("attention", "loss", "unroll")},
    "command": command,
    "dropout": partial(varied, name="dropout"),
}


def tabulate(out: Path) -> None:
    """Write gpu.md: the table of every program that has one, in Markdown."""
    parts, device = [], "unknown"
    for name in PROGRAMS:
        path = out / f"gpu_{name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            for figures in content["figures"].values():
                device = figures.get("device", device) if isinstance(figures, dict) else device
            cells = [content["columns"], ["---"] * len(content["columns"]), *content["rows"]]
            table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
            notes = "".join(f"\n- {note}" for note in content["notes"])
            parts.append(f"### {content['title']}\n\n{table}\n{notes}\n")
    here = machine()
    versions = ", ".join(f"{name} {here[name]}" for name in ("jax", "torch") if here[name])
    title = f"## {here['date']}, {device}; Python {here['python']}, {versions}"
    told = " ".join(["python bench/gpu.py", *sys.argv[1:]])
    (out / "gpu.md").write_text("\n".join([title, "", f"`{told}`", "", *parts]))


def tabulated(program: Program) -> Program:
    """A program after which gpu.md is written, also if it fails."""

    def run(plan: Plan) -> None:
        try:
            program(plan)
        finally:
            assert plan.out is not None
            tabulate(plan.out)

    return run


def main(words: Sequence[str]) -> int:
    """Run the programs in order; 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_figures"), help="directory of files")
    parser.add_argument("--text", type=Path, help="UTF-8 text to train on")
    parser.add_argument("--minutes", type=float, default=8.0, help="wall time in all")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes: does it run?")
    parser.add_argument("--only", nargs="+", default=[], help="programs to run, by name")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gptjax-gpu-") as work:
        # programs share a cache of compiled programs; whole trainings have their own caches
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(work) / "cache"))
        text = given.text.resolve() if given.text else None
        limit = given.minutes * 60 if given.dry_run else LIMIT
        plan = Plan(given.dry_run, Path(work), given.out, text)
        programs = {name: tabulated(program) for name, program in PROGRAMS.items()}
        outcomes = run_programs(programs, tuple(given.only), plan, given.minutes * 60, limit)
    report = Report("gpu", "Programs", ("program", "outcome", "seconds"))
    report.rows = [(name, o["outcome"], f"{o['seconds']:.0f}") for name, o in outcomes.items()]
    report.figures = outcomes
    report.publish(given.out)
    return report_outcomes(outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

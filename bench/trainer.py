"""The train command as its users run it, in whole processes: start, recipe, two checkouts.

Nothing of the trainer is imported here. A run is its command line, its metrics.jsonl and its
output, which are the same in every checkout.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness import (
    BENCH,
    ROOT,
    Figures,
    Plan,
    Report,
    Skipped,
    Spread,
    Worker,
    column,
    in_turns,
    plain_environment,
    ratios,
)

POLL_SECONDS = 0.005
QUIET = ("--train.eval-every-steps", "0", "--train.sample-every-steps", "0")
# Configs that are run on any text: tokenizer and flags. 2^19 tokens would take a processor an hour.
FEW_TOKENS = ("--train.batch-tokens", "1024")
STARTS = {"quickstart": ("bytes", ()), "gpt2_124m": ("gpt2", FEW_TOKENS)}
TOY_START = {"tiny": ("bytes", ())}
# The same, with how many steps are run and how many of them are left out of the rate.
ONE_ROW = ("--train.micro-batch", "1", "--model.dtype", "float32")
CHECKOUTS = {
    "shakespeare": ("bytes", (), 400, 100),
    "gpt2_124m": ("gpt2", (*FEW_TOKENS, *ONE_ROW), 8, 2),
}
TOY_CHECKOUTS = {"tiny": ("bytes", (), 20, 5)}


class Run(NamedTuple):
    """One process of the train command; seconds are from its start."""

    rows: list[dict[str, Any]]  # of metrics.jsonl
    said: str
    reached: float  # until the first step began, as its own line says
    first: float  # until the first row of metrics.jsonl
    seconds: float  # until its end


def train(scratch: Path, words: Sequence[str], root: Path = ROOT) -> Run:
    """Train by a checkout into `scratch`/run, made anew, compiled programs in `scratch`/cache.

    Raises `RuntimeError` where the process fails.
    """
    run_dir, said = scratch / "run", scratch / "said"
    shutil.rmtree(run_dir, ignore_errors=True)
    rows, first = run_dir / "metrics.jsonl", None
    command = [sys.executable, "-m", "gptjax.train", *words, "--run-dir", str(run_dir)]
    with said.open("wb") as output:
        started = time.perf_counter()
        # `scratch`, since python -m would rather import from where it is
        process = subprocess.Popen(
            command, cwd=scratch, env=_environment(scratch, root), stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                if first is None and rows.exists() and rows.stat().st_size:
                    first = time.perf_counter() - started
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
        seconds = time.perf_counter() - started
    text = said.read_text(errors="replace").strip()
    if process.returncode or not rows.exists():
        raise RuntimeError(f"{' '.join(command)} failed: {text[-2000:]}")
    # `update` in checkouts before the words changed
    (step,) = re.findall(r"first (?:step|update) ([0-9.]+) s;", text)
    first = first or seconds
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    return Run(lines, text, first - float(step), first, seconds)


def prepare(scratch: Path, words: Sequence[str], root: Path = ROOT) -> list[str]:
    """Prepare text in `scratch`/data by a checkout; return the flags for its trainer."""
    data = scratch / "data"
    command = [sys.executable, "-m", "gptjax.prepare", *words, "--out", str(data)]
    environment = _environment(scratch, root)
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    manifest = json.loads((data / "manifest.json").read_text())
    chosen = ["--data.tokenizer", manifest["tokenizer"], "--model.n-vocab", manifest["n_vocab"]]
    return ["--data.path", str(data), *map(str, chosen)]


def _environment(scratch: Path, root: Path) -> dict[str, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**plain_environment(root), "XDG_CACHE_HOME": str(scratch / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would be preferred
    return environment


def own_text(tokenizer: str) -> list[str]:
    """Flags that prepare the source of these programs as a text."""
    words = ["--tokenizer", tokenizer, "--val-fraction", "0.2", "--input"]
    return [*words, *map(str, sorted(BENCH.glob("*.py")))]


def cold_and_warm(scratch: Path, words: Sequence[str]) -> Figures:
    """Train one step with an empty cache of compiled programs, and again with a full one."""
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    figures: Figures = {}
    for kind in ("cold", "warm"):
        run = train(
            scratch, [*words, *QUIET, "--train.max-steps", "1", "--optim.warmup-steps", "1"]
        )
        figures |= {f"reached, {kind}": run.reached, f"done, {kind}": run.first}
    return figures


def jax_alone() -> Figures:
    """The floor for any trainer on jax: import it, find the devices, compile one addition."""
    script = (
        "import jax, jax.numpy as jnp; jax.jit(lambda x: x + 1)(jnp.ones(8)).block_until_ready()"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - started}


def start(plan: Plan, rounds: int = 3) -> None:
    """From Enter to the first step, without and with compiled programs in the cache."""
    report = Report(
        "startup",
        "Start of `python -m gptjax.train --config CONFIG`, seconds",
        (
            *("config", "until the first step begins, cold", "warm", "until it is done, cold"),
            *("warm", "warm / cold", "cold / floor"),
        ),
    )
    for config, (tokenizer, more) in (TOY_START if plan.quick else STARTS).items():
        scratch = plan.scratch / config
        try:
            words = ["--config", config, *prepare(scratch, own_text(tokenizer)), *more]
        except RuntimeError as error:
            report.skip(config, str(error))
            continue
        starts = partial(cold_and_warm, scratch, words)
        measured = in_turns({"gptjax": starts, "floor": jax_alone}, plan.rounds(rounds))
        report.note(f"{config}: on prepared data, with {' '.join(words[4:])}")
        names = ("reached, cold", "reached, warm", "done, cold", "done, warm")
        seconds = {name: column(measured["gptjax"], name) for name in names}
        floors = column(measured["floor"])
        over = {
            "warm over cold": ratios(seconds["reached, warm"], seconds["reached, cold"]),
            "cold over the floor": ratios(seconds["reached, cold"], floors),
        }
        spreads = (*(Spread.of(s) for s in seconds.values()), *over.values())
        report.rows.append((config, *(spread.text("{:.2f}") for spread in spreads)))
        report.figures[config], report.ratio[config] = {**seconds, "floor": floors}, over
    report.note("floor: a process that imports jax and adds two numbers")
    report.publish(plan.out)


def recipe(plan: Plan) -> None:
    """nanoGPT's CPU recipe, from process start to last checkpoint, beside a plain torch loop.

    4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout, no biases, 2,000 steps at 1e-3
    to 1e-4, AdamW with betas 0.9 and 0.99, the last tenth of the text for validation. The torch
    side is `torch_side.recipe`, until its last checkpoint is written. Ours is the train command
    with `--config shakespeare` to its end, with curves and with an empty cache of programs. Tokens
    are bytes here and characters there, which in ASCII are the same. Losses are over the whole
    validation text.
    """
    steps, every, text = (20, 20, BENCH / "harness.py") if plan.quick else (2000, 250, plan.text)
    report = Report(
        "recipe",
        f"nanoGPT's CPU recipe, {steps:,} steps",
        ("side", "wall time, s", "validation loss, nats a character"),
    )
    if text is None:
        raise Skipped("recipe needs its text: --text tinyshakespeare.txt")
    words = ["--config", "shakespeare"]
    words += prepare(plan.scratch, [*words, "--input", str(text.resolve())])
    if plan.quick:
        words += ["--train.max-steps", str(steps), "--optim.warmup-steps", str(steps)]
        words += ["--train.eval-every-steps", str(every)]

    def torch_run() -> Figures:
        arguments = {"text": str(text), "out": str(plan.scratch / "torch"), "every": every}
        started = time.perf_counter()
        worker = Worker("torch_side.recipe", **arguments, steps=steps)
        seconds = time.perf_counter() - started
        loss = worker()["val_loss"]
        worker.close()
        return {"seconds": seconds, "val_loss": loss}

    def gptjax_run() -> Figures:
        shutil.rmtree(plan.scratch / "cache", ignore_errors=True)
        run = train(plan.scratch, words)
        return {"seconds": run.seconds, "val_loss": run.rows[-1]["val_loss"]}

    measured = in_turns({"plain torch": torch_run, "gptjax": gptjax_run}, plan.rounds(3))
    for side, rounds in measured.items():
        losses, seconds = Spread.of(column(rounds, "val_loss")), Spread.of(column(rounds))
        report.rows.append((side, seconds.text("{:.1f}"), losses.text("{:.4f}")))
        report.figures[side] = {n: column(rounds, n) for n in ("seconds", "val_loss")}
    faster = ratios(column(measured["plain torch"]), column(measured["gptjax"]))
    report.ratio["torch's time over gptjax's"] = faster
    report.rows.append(("torch's time over gptjax's", faster.text("{:.2f}"), ""))
    report.note("torch validates and, at a new best, saves every 250 steps, gptjax every 1,000")
    report.publish(plan.out)


def checkouts(plan: Plan) -> None:
    """Tokens per second of the train command of this checkout beside that of `plan.against`.

    Each side prepares the same text itself, and in each round each side does a whole run.
    """
    assert plan.against is not None
    roots = {"this": ROOT, "other": plan.against.resolve()}
    report = Report(
        "checkouts",
        "Training by two checkouts: tokens/s, median (lowest to highest)",
        ("config", *roots, "this over other"),
    )
    report.note("; ".join(f"{side}: {version(root)}" for side, root in roots.items()))
    for config, case in (TOY_CHECKOUTS if plan.quick else CHECKOUTS).items():
        tokenizer, more, steps, warm = case
        sides = {}
        for side, root in roots.items():
            scratch = plan.scratch / config / side
            prepared = prepare(scratch, own_text(tokenizer), root)
            words = ["--config", config, *prepared, *more, *QUIET, "--train.max-steps", str(steps)]
            words += ["--train.save-every-steps", "0", "--optim.warmup-steps", str(warm)]
            sides[side] = partial(_second_a_token, scratch, words, root, warm)
        report.row(config, in_turns(sides, plan.rounds(5)), 1, "{:,.0f}")
    report.publish(plan.out)


def _second_a_token(scratch: Path, words: list[str], root: Path, warm: int) -> Figures:
    rows = train(scratch, words, root).rows[warm:]
    return {"seconds": 1 / statistics.median(row["tokens_per_second"] for row in rows)}


def version(root: Path) -> str:
    """A checkout's commit; raises `RuntimeError` if python finds another checkout's package."""
    ask = partial(subprocess.run, check=True, capture_output=True, text=True)
    script = "import gptjax; print(gptjax.__file__)"
    found = ask([sys.executable, "-c", script], cwd="/", env=plain_environment(root)).stdout
    if not Path(found.strip()).resolve().is_relative_to(root):
        raise RuntimeError(f"python imports {found.strip()}, not the package in {root}")
    return ask(["git", "-C", str(root), "describe", "--always", "--dirty"]).stdout.strip()

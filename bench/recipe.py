"""nanoGPT's CPU recipe from Enter to the last checkpoint: gptjax beside a plain torch loop.

    python bench/recipe.py --text tinyshakespeare.txt
    python bench/recipe.py --text tinyshakespeare.txt --updates 250 --rounds 1

4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout, no biases, 2,000 updates at 1e-3 to
1e-4, AdamW with betas 0.9 and 0.99, by characters, the last tenth for validation. The torch side
(recipe_torch.py) is timed from the start of its process until its last checkpoint is written. Ours
is `python -m gptjax.train --config shakespeare` in a fresh run directory, timed from the start of
its process to its end: curves, samples and all. Sides take turns. The text is prepared by
`python -m gptjax.prepare` beforehand, untimed; its tokens are bytes, which in this file are
characters. Final losses are over the whole validation text on both sides.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from harness import BENCH, Figures, Report, Spread, column, in_turns, plain_environment, ratios
from startup import fresh_environment


@dataclass(frozen=True)
class Command:
    """Train the same recipe on both sides."""

    text: Path
    """tinyshakespeare.txt, or any ASCII text."""
    updates: int = 2000
    """Updates a side."""
    rounds: int = 3
    """Runs of each side."""
    cache: bool = False
    """Keep gptjax's compiled programs between its runs; else every run compiles anew."""
    out: Path | None = None
    """Directory for recipe.json."""


def torch_run(command: Command, scratch: Path) -> Figures:
    """Wall seconds of the torch process until its checkpoint is there, and its loss."""
    arguments = ["--text", str(command.text), "--out", str(scratch / "torch")]
    length = ["--updates", str(command.updates), "--eval-every", str(_every(command))]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(BENCH / "recipe_torch.py"), *arguments, *length],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    done = process.stdout.readline()
    seconds = time.perf_counter() - started
    rest, _ = process.communicate()
    if done != "done\n" or process.returncode:
        raise RuntimeError("the torch side failed; its words are above")
    return {"seconds": seconds, "val_loss": json.loads(rest)["val_loss"]}


def gptjax_run(command: Command, scratch: Path) -> Figures:
    """Wall seconds of the whole train process, and its loss."""
    run_dir = scratch / "gptjax"
    shutil.rmtree(run_dir, ignore_errors=True)
    if not command.cache:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
    words = [sys.executable, "-m", "gptjax.train", "--config", "shakespeare"]
    words += ["--data.path", str(scratch / "data"), "--run-dir", str(run_dir)]
    if command.updates != 2000:
        words += ["--train.max-steps", str(command.updates)]
        words += ["--train.eval-every-steps", str(_every(command))]
        words += ["--optim.warmup-steps", str(min(100, command.updates))]
    started = time.perf_counter()
    subprocess.run(
        words, env=fresh_environment(scratch / "cache"), stdout=subprocess.DEVNULL, check=True
    )
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "val_loss": rows[-1]["val_loss"]}


def _every(command: Command) -> int:
    return min(250, command.updates)


def main(command: Command) -> None:
    """Prepare, train in turns, print both wall times, their ratio and both losses."""
    with tempfile.TemporaryDirectory(prefix="gptjax-recipe-") as directory:
        scratch = Path(directory)
        prepare = [sys.executable, "-m", "gptjax.prepare", "--config", "shakespeare"]
        prepare += ["--input", str(command.text), "--out", str(scratch / "data")]
        subprocess.run(prepare, env=plain_environment(), check=True, stdout=subprocess.DEVNULL)
        sides = {
            "plain torch": lambda: torch_run(command, scratch),
            "gptjax": lambda: gptjax_run(command, scratch),
        }
        measured = in_turns(sides, command.rounds)
    report = Report(
        "recipe",
        f"nanoGPT's CPU recipe, {command.updates:,} updates, {command.rounds} runs a side",
        ("side", "wall time, s", "validation loss, nats a character"),
    )
    for side, rounds in measured.items():
        losses = Spread.of(column(rounds, "val_loss"))
        seconds = Spread.of(column(rounds))
        report.rows.append((side, seconds.text("{:.1f}"), losses.text("{:.4f}")))
        report.figures[side] = {n: column(rounds, n) for n in ("seconds", "val_loss")}
    faster = ratios(column(measured["plain torch"]), column(measured["gptjax"]))
    report.ratio["torch's time over gptjax's"] = faster
    report.rows.append(("torch's time over gptjax's", faster.text("{:.2f}"), ""))
    report.notes.append(
        "torch validates and, at a new best, saves every 250 updates, gptjax every 1,000"
    )
    report.notes.append(
        "gptjax: process start to exit, compiled programs "
        + ("kept between runs" if command.cache else "made anew in every run")
    )
    report.publish(command.out)


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))

"""Measure gptjax: every program prints one table and writes one JSON file.

    python bench/run.py                                  # everything; hours on two cores
    python bench/run.py --only train_throughput decode
    python bench/run.py --only recipe --text tinyshakespeare.txt
    python bench/run.py --only instruct --instructions instructions.json
    python bench/run.py --only classify --labelled sms_spam.tsv
    python bench/run.py --only train_throughput --against ../other/checkout
    python bench/run.py --quick                          # toy sizes: does every program run?

Each figure has another of the same run beside it: torch's, plain XLA's, or a floor that the table
names. Sides take turns, each in its own process. If a program fails, the others still run, and the
exit code is 1. Comparisons with torch need the `reference` extra.

With `--against`, train_throughput compares with the train command of another checkout instead of
torch; that checkout may be older or newer, with another tree. Both run `shakespeare` and
`gpt2_124m` (1,024 tokens a step, float32; needs gpt2's tokenizer) in turns, five runs each, and the
rates come from metrics.jsonl after the first steps: a quarter of an hour on two cores.
"""

import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import computing
import generating
import instructing
import measuring
import server_load
import spam
import surroundings
import trainer
import tyro
from harness import Plan, Skipped

LEAST_SECONDS = 20  # a program with less time left is not started
FOREVER = 1e6

Program = Callable[[Plan], None]
PROGRAMS: dict[str, Program] = {
    "train_throughput": partial(computing.throughput, dtype="float32"),
    "train_bfloat16": partial(computing.throughput, dtype="bfloat16"),
    "loss": computing.loss,
    "attention": computing.attention,
    "loader": surroundings.loader,
    "tokenizer": surroundings.tokenizer,
    "large_text": surroundings.large_text,
    "checkpoint": surroundings.checkpoint,
    "startup": trainer.start,
    "recipe": trainer.recipe,
    "decode": generating.decode,
    "serve": server_load.serve,
    "evaluate": measuring.evaluate,
    "instruct": instructing.instruct,
    "classify": spam.classify,
}


@dataclass(frozen=True)
class Command:
    """Measure gptjax beside torch, plain XLA and stated floors."""

    only: tuple[str, ...] = ()
    """Programs to run, by name; none means all."""
    quick: bool = False
    """Toy sizes and two rounds: shows that the programs run, measures nothing."""
    text: Path | None = None
    """Training text of the recipe: tinyshakespeare.txt, or any ASCII text."""
    instructions: Path | None = None
    """Instructions to tune on: an array of Alpaca's records."""
    labelled: Path | None = None
    """Labelled messages for classify: sms_spam.tsv."""
    against: Path | None = None
    """Another checkout, for train_throughput to compare with."""
    out: Path | None = None
    """Directory for one JSON file a program."""


def run_programs(
    programs: Mapping[str, Program],
    only: tuple[str, ...],
    plan: Plan,
    seconds: float = FOREVER,
    limit: float = FOREVER,
) -> dict[str, dict[str, Any]]:
    """Run all, or those in `only`, within `seconds`, each within `limit`; return every outcome.

    If one fails or runs over its limit, the rest go on; none starts with too little time left.
    """
    if unknown := set(only) - set(programs):
        names = f"{', '.join(sorted(unknown))}: expected of {', '.join(programs)}"
        sys.exit(f"no program {names}")
    outcomes: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _run_over)
    for name in only or programs:
        started = time.monotonic()
        left, outcome = deadline - started, "done"
        if left < LEAST_SECONDS:
            outcomes[name] = {"outcome": f"skipped: {left:.0f} s were left", "seconds": 0.0}
            continue
        print(f"{name} ...", flush=True)
        try:
            signal.setitimer(signal.ITIMER_REAL, min(left, limit))
            with tempfile.TemporaryDirectory(dir=plan.scratch) as own:
                programs[name](replace(plan, scratch=Path(own)))
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except Exception as error:
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        outcomes[name] = {"outcome": outcome, "seconds": time.monotonic() - started}
    return outcomes


def _run_over(*_: object) -> None:
    raise TimeoutError("its time was up")


def main(command: Command) -> int:
    """Run the chosen programs; 1 if any of them failed."""
    with tempfile.TemporaryDirectory(prefix="gptjax-bench-") as scratch:
        given = command.text, command.against, command.instructions, command.labelled
        plan = Plan(command.quick, Path(scratch), command.out, *given)
        outcomes = run_programs(PROGRAMS, command.only, plan)
    return report_outcomes(outcomes)


def report_outcomes(outcomes: dict[str, dict[str, Any]]) -> int:
    """Name the programs that are not done; 1 if any failed."""
    for name, outcome in outcomes.items():
        if outcome["outcome"] != "done":
            print(f"{name} {outcome['outcome']}", file=sys.stderr)
    return int(any(outcome["outcome"].startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))

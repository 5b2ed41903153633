"""Measure gptjax: every program prints one table and writes one JSON file.

    python bench/run.py                                  # everything; hours on two cores
    python bench/run.py --only train_throughput decode
    python bench/run.py --quick                          # toy sizes: does every program run?

Each figure stands beside another of the same run: torch, plain XLA, or a floor that the table
names. Sides take turns, each in its own process. A program that fails is reported, the others run,
and the exit code is 1. Comparisons with torch need the `reference` extra.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import computing
import surroundings
import tyro
from computing import Plan
from harness import cores

Name = Literal[
    "train_throughput",
    "train_bfloat16",
    "loss",
    "attention",
    "memory",
    "loader",
    "tokenizer",
    "large_text",
    "checkpoint",
    "startup",
    "decode",
]
PROGRAMS: dict[Name, Callable[[Plan], None]] = {
    "train_throughput": partial(computing.throughput, dtype="float32"),
    "train_bfloat16": partial(computing.throughput, dtype="bfloat16"),
    "loss": computing.loss,
    "attention": computing.attention,
    "memory": computing.memory,
    "loader": surroundings.loader,
    "tokenizer": surroundings.tokenizer,
    "large_text": surroundings.large_text,
    "checkpoint": surroundings.checkpoint,
    "startup": surroundings.start,
    "decode": computing.decode,
}


@dataclass(frozen=True)
class Command:
    """Measure gptjax beside torch, plain XLA and stated floors."""

    only: tuple[Name, ...] = ()
    """Programs to run; none means all."""
    quick: bool = False
    """Toy sizes and two rounds: shows that the programs run, measures nothing."""
    out: Path | None = None
    """Directory for one JSON file a program."""


def main(command: Command) -> int:
    """Run the chosen programs; 1 if any of them failed."""
    failed = []
    for name in command.only or PROGRAMS:
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="gptjax-bench-") as scratch:
            try:
                PROGRAMS[name](Plan(command.quick, Path(scratch), command.out, cores()))
            except Exception:
                traceback.print_exc()
                failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))

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

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import computing
import generating
import instructing
import measuring
import server_load
import spam
import surroundings
import trainer
import tyro
from harness import Plan
from programs import Program, report_outcomes, run_programs

PROGRAMS: dict[str, Program] = {
    "train_throughput": partial(computing.throughput, dtype="float32"),
    "train_bfloat16": partial(computing.throughput, dtype="bfloat16"),
    "loss": computing.loss,
    "attention": computing.attention,
    "loader": surroundings.loader,
    "tokenizer": surroundings.tokenizer,
    "large_text": surroundings.large_text,
    "checkpoint": surroundings.checkpoint,
    "saving": surroundings.saving,
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


def main(command: Command) -> int:
    """Run the chosen programs; 1 if any of them failed."""
    with tempfile.TemporaryDirectory(prefix="gptjax-bench-") as scratch:
        given = command.text, command.against, command.instructions, command.labelled
        plan = Plan(command.quick, Path(scratch), command.out, *given)
        outcomes = run_programs(PROGRAMS, command.only, plan)
    return report_outcomes(outcomes)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))

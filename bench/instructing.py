"""The program that measures instruction tuning: packed, padded, and Hugging Face's Trainer."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Plan, Report, Skipped, compare
from shapes import TOY, Shape, gpt2

ROWS = 8  # examples of a batch that is padded


def instruct(plan: Plan) -> None:
    """Tokens of examples per second, prompts and responses, over epochs of the same examples.

    All sides learn the responses alone, in float32 with AdamW and without dropout. A batch is 8
    examples: the Trainer groups them by length and pads to the longest, ours are drawn at random
    and padded to one of four lengths, or packed into as many rows of 256 tokens as hold about 8.
    An epoch includes the loading of its batches, and nothing that happens once a run.
    """
    small = Shape(n_layer=4, n_head=4, n_embd=256, n_ctx=256, n_vocab=50257, batch=ROWS)
    cases = [("small", small, 240, 3), ("gpt2_124m", gpt2("124M", 256, ROWS), 32, 2)]
    tokenizer, packed_rows = "gpt2", 2
    if plan.quick:
        cases, tokenizer = [("toy", _toy(), 16, 2)], "bytes"
    elif plan.instructions is None:
        raise Skipped("instruct needs its data: --instructions instructions.json")
    report = Report(
        "instruct",
        "Instruction tuning in float32: tokens of examples/s, median (lowest to highest)",
        ("shape", "packed", "padded", "HF Trainer", "over padded", "over HF Trainer"),
    )
    for name, shape, examples, rounds in cases:
        path = plan.scratch / f"{name}.json"
        path.write_text(json.dumps(_records(plan.instructions, examples)))
        common: dict[str, Any] = {"shape": asdict(shape), "tokenizer": tokenizer, "path": str(path)}
        tokens = plan.scratch / f"{name}_tokens.json"
        targets = {
            # the first side writes the tokens that the Trainer reads
            "packed": (
                "instructing_side.tune",
                {**common, "lengths": "pack", "rows": packed_rows, "out": str(tokens)},
            ),
            "padded": ("instructing_side.tune", {**common, "lengths": "pad", "rows": ROWS}),
            "HF Trainer": (
                "trainer_side.tune",
                {"shape": asdict(shape), "tokens": str(tokens), "rows": ROWS},
            ),
        }
        measured, facts = compare(targets, plan.rounds(rounds), report)
        label = f"{name}: {shape}; {plan.rounds(rounds)} epochs of {examples} examples"
        report.row(label, measured, facts["packed"]["tokens"], "{:,.0f}")
        report.figures[label]["facts"] = facts
    report.publish(plan.out)


def _toy() -> Shape:
    return Shape(**{**asdict(TOY), "n_ctx": 256, "n_vocab": 257, "batch": ROWS})


def _records(path: Path | None, count: int) -> list[dict[str, str]]:
    """So many records, evenly spread over those of a file; without one, made up."""
    if path is None:
        chance = random.Random(0)
        words = [[chance.choice(("fox", "bee")) for _ in range(1 + i % 7)] for i in range(count)]
        return [{"instruction": f"Say {i}.", "output": " ".join(w)} for i, w in enumerate(words)]
    records = json.loads(path.read_text())
    return [records[i * len(records) // count] for i in range(count)]

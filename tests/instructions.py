"""Made-up instructions, and the config of a tiny run on them."""

import json
import random
from pathlib import Path
from typing import Any

from small_runs import with_values

from gptjax.config import Config
from gptjax.config.presets import load_config


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    """So many of Alpaca's records, of unequal lengths, every other with an input."""
    chance = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(chance.choices(["red", "fox", "bee", "owl"], k=chance.randint(least, most)))

    return [
        {"instruction": words(1, 6), "input": words(0, 3) * (i % 2), "output": words(1, 9)}
        for i in range(count)
    ]


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many chats of one or two questions and answers."""
    found = records(2 * count, seed)
    pairs = [
        [
            {"role": "user", "content": record["instruction"]},
            {"role": "assistant", "content": record["output"]},
        ]
        for record in found
    ]
    return [{"messages": pairs[2 * i] + pairs[2 * i + 1] * (i % 2)} for i in range(count)]


def config_on(found: list[dict], directory: Path, **values: Any) -> Config:
    """A tiny config for these records as bytes, with other values under dotted names."""
    path = directory / "instructions.json"
    path.write_text(json.dumps(found))
    where = {
        "data.examples": str(path), "data.tokenizer": "bytes", "data.test_fraction": 0.1,
        "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 16, "model.n_ctx": 384,
        "model.unroll": 1, "model.embd_pdrop": 0.0, "model.attn_pdrop": 0.0,
        "model.resid_pdrop": 0.0, "train.batch_rows": 8, "train.micro_batch": 1,
        "optim.warmup_steps": 1, "instruct.lengths": "pack", "instruct.test_responses": 1,
    }  # fmt: skip
    return with_values(load_config("instruct_alpaca"), {**where, **values})

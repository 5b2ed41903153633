"""Made-up tests in the shapes of HellaSwag, LAMBADA and WikiText, and models to measure with them.

A row has what trips a careless reader: brackets of WikiHow, double blanks, a passage of one word,
a page longer than the model's context.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from conftest import made_up_text

from gptjax.base.tree import named_leaves
from gptjax.config import Config, ModelConfig
from gptjax.conversion.huggingface_writing import write_huggingface
from gptjax.conversion.weights import Weights
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import init_params
from gptjax.tokenizers.bpe import train_bpe
from gptjax.tokenizers.plain import Tokenizer

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_ctx": 64, "dtype": "float32"}


def made_run(tokenizer: Tokenizer | None = None, **shape: Any) -> LoadedRun:
    """A model that has learnt nothing, with weights large enough to have opinions."""
    found = tokenizer or train_bpe([" ".join(all_words()[:8000])], 400)
    model = ModelConfig(n_vocab=found.n_vocab, **{**SHAPE, **shape})
    params = jax.tree.map(lambda x: 3 * x, init_params(model, jax.random.key(0)))
    return LoadedRun(Config(model=model), params, found, 0, "made for a test")


def as_huggingface(run: LoadedRun, out: Path) -> Path:
    """The run as the Hugging Face directory that gptjax.convert writes."""
    arrays = {name: np.asarray(array) for name, array in named_leaves(run.params).items()}
    write_huggingface(Weights(run.config.model, arrays, run.tokenizer, "a test"), out)
    return out


@cache
def all_words() -> list[str]:
    """The words of the tests, which are made once."""
    return made_up_text().split()


def _words(chance: random.Random, low: int, high: int) -> str:
    words = all_words()
    start = chance.randrange(len(words) - high)
    return " ".join(words[start : start + chance.randint(low, high)])


def hellaswag_rows(count: int, context: tuple[int, int] = (8, 20)) -> list[dict[str, Any]]:
    """Items of HellaSwag; words of the scene, in order of the file."""
    chance, rows = random.Random(1), []
    for number in range(count):
        first, second = _words(chance, *context), _words(chance, 1, 3).lower()
        if number % 3 == 0:
            first = f"How to {first} [title] {_words(chance, 3, 6)} [step]  {_words(chance, 2, 4)}"
        endings = [
            _words(chance, 3, 9) + chance.choice([".", "", " [substeps] ha."]) for _ in "1234"
        ]
        rows.append(
            {
                "ind": number,
                "activity_label": _words(chance, 1, 3),
                "ctx_a": first,
                "ctx_b": second,
                "ctx": f"{first} {second}",
                "endings": endings,
                "label": number % 4,
                "split": "val",
            }
        )
    return rows


def lambada_rows(count: int) -> list[dict[str, Any]]:
    """Passages, one of them a single word."""
    chance = random.Random(2)
    return [{"text": "Bada"}] + [{"text": _words(chance, 8, 60)} for _ in range(count - 1)]


def wikitext_rows(count: int) -> list[dict[str, Any]]:
    """Pages with the blanks of WikiText's tokenisation; some are longer than a context."""
    chance, rows = random.Random(3), []
    for number in range(count):
        body = _words(chance, 20, 90).replace(",", " ,").replace(".", " .")
        aside = f"( {_words(chance, 2, 3)} ) , 1 @,@ 0{number}"
        rows.append({"page": f" = {_words(chance, 1, 2)} = \n \n {body} {aside} \n"})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

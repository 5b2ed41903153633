"""Small files of labelled texts, and the config that reads them without training anything."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.config import ClassifyConfig, Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.classify import LabelledTexts

STORY = {
    "InputStoryid": "a1", "InputSentence1": "Ann was hungry.", "InputSentence2": "She went home.",
    "InputSentence3": "She looked for bread.", "InputSentence4": "There was none.",
    "RandomFifthSentenceQuiz1": "She slept.", "RandomFifthSentenceQuiz2": "She baked some.",
    "AnswerRightEnding": 2,
}  # fmt: skip


def messages(count: int = 60) -> list[tuple[str, str]]:
    """Labels and texts: a third of them spam, all texts different and of different lengths."""
    return [
        ("ham" if n % 3 else "spam", f"message {n} about {'prizes ' * (n % 7)}and lunch")
        for n in range(count)
    ]


def as_tsv(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{label}\t{text}\n" for label, text in rows)


def as_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def config_for(examples: Path | None, **fields: Any) -> Config:
    """A classification of these examples; `fields` belong to data, classify, model or train."""
    sections = {"data": DataConfig, "classify": ClassifyConfig, "train": TrainConfig}
    own = {
        name: {k: v for k, v in fields.items() if k in {f.name for f in dataclasses.fields(kind)}}
        for name, kind in sections.items()
    }
    where = None if examples is None else str(examples)
    return Config(
        task="classify",
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=96, dtype="float32"),
        data=DataConfig(**{"examples": where, "val_fraction": 0.2, "test_fraction": 0.2,
                           **own["data"]}),
        classify=ClassifyConfig(**own["classify"]),
        train=TrainConfig(**{"batch_rows": 8, "micro_batch": 1, "max_steps": 10, "epochs": 2,
                             "eval_every_steps": 0, "save_every_steps": 0, "preflight": "off",
                             "sample_every_steps": 0, **own["train"]}),
        optim=dataclasses.replace(Config().optim, warmup_steps=0),
    )  # fmt: skip


def opened(examples: Path | None, **fields: Any) -> LabelledTexts:
    return LabelledTexts(config_for(examples, **fields), None, None)


def texts_of(data: LabelledTexts, split: str) -> list[str]:
    """The texts of a split, without special tokens, by the bytes that they became."""
    found = []
    examples = getattr(data, split)
    for index in range(len(examples)):
        example = examples[index]
        for tokens, length in zip(example["tokens"], example["lengths"], strict=True):
            found.append(bytes(t for t in tokens[:length].tolist() if t < 256).decode())
    return found

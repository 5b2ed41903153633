"""The shape and the tokenizer of a model to start from, read without its parameters and jax."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gptjax.config import ModelConfig
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface, open_huggingface
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import CheckpointName
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import NAMED, fingerprint


class Source(NamedTuple):
    """What a run takes over from a model before it reads its parameters."""

    name: str
    """As the user wrote it."""
    model: ModelConfig
    """Its shape and switches, with the vocabulary known."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    tokenizer_name: str | None
    """What `prepare --tokenizer` and `data.tokenizer` call it; None if no name and no file of ours
    stands for it."""

    @property
    def fingerprint(self) -> str:
        """The identity of its tokenizer."""
        return fingerprint(self.tokenizer)


def read_source(name: str) -> Source:
    """The shape of RUN, RUN@best, RUN@latest, RUN@STEP, or of a Hugging Face directory.

    Raises `UserError` if nothing of this kind is there, if the run has no such checkpoint, or if it
    is damaged.
    """
    named = find_model(name)
    if is_huggingface(named.path):
        return _of_huggingface(name, named.path)
    return _of_run(name, named)


def _of_huggingface(name: str, path: Path) -> Source:
    opened = open_huggingface(path)
    tokenizer = opened.tokenizer
    return Source(
        name, opened.model, tokenizer, tokenizer.name if tokenizer.name in NAMED else None
    )


def _of_run(name: str, named: CheckpointName) -> Source:
    run_dir = RunDir(named.path)
    config, tokenizer = run_dir.read_config(), run_dir.read_tokenizer()
    run_dir.require_checkpoint(named.which)
    file = str(run_dir.tokenizer)
    model = replace(config.model, lora_rank=0)  # adapters are merged into their base
    return Source(name, model, tokenizer, tokenizer.name if tokenizer.name in NAMED else file)

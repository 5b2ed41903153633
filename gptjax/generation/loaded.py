"""A run, loaded for use: its config, parameters and tokenizer, and text from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import SupportsIndex

import jax

from gptjax.base.errors import ConfigError
from gptjax.base.tree import Tree
from gptjax.config import Config, SampleConfig
from gptjax.config.validation import sample_problems
from gptjax.generation.continuing import FOR_READERS, continue_texts
from gptjax.generation.engine import Engine
from gptjax.generation.text_requests import before_text, sample_key, text_request
from gptjax.tokenizers.plain import Tokenizer

DEFAULTS = SampleConfig()


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its config, tokenizer and step.

    The first text makes a copy of the parameters in the form that decoding reads, which is kept as
    long as the object. The key-value cache of a text is freed when the text ends.
    """

    config: Config
    """The config of the run."""
    params: Tree
    """Its parameters, for `GPT(run.config.model).apply({"params": run.params}, ...)`."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    step: int
    """The step at which the checkpoint was saved; 0 for a model that is not a run's."""
    origin: str
    """Where it was found, in words for messages."""
    directory: Path | None = None
    """The directory of the run, with what it keeps; None for a model that is not a run's."""

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        seed: int = 0,
        top_p: float = DEFAULTS.top_p,
        min_p: float = DEFAULTS.min_p,
        repetition_penalty: float = DEFAULTS.repetition_penalty,
        stop: Sequence[str] = (),
        slide: bool = False,
        raw: bool = False,
    ) -> str:
        """Return `prompt` and the text that follows, as `python -m gptjax.generate` prints them.

        Stops at end-of-text, before a text of `stop`, after `max_new_tokens` tokens, or when the
        context is full; with `slide` its newest half then becomes the new context. A `temperature`
        of 0 takes the most likely token; `top_k` None, `top_p` 1 and `min_p` 0 keep the whole
        vocabulary. The same seed gives the same text. Products have the type of the parameters.
        A run that follows instructions answers the prompt, after an empty line, unless it is `raw`.
        Raises `ConfigError` for numbers out of range, `UserError` for a prompt that the tokenizer
        cannot encode.
        """
        chosen = (top_p, min_p, repetition_penalty, stop, slide, raw)
        pieces = self.stream(prompt, max_new_tokens, temperature, top_k, seed, *chosen)
        return prompt + before_text(self.config, raw) + "".join(pieces)

    def stream(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        seed: int = 0,
        top_p: float = DEFAULTS.top_p,
        min_p: float = DEFAULTS.min_p,
        repetition_penalty: float = DEFAULTS.repetition_penalty,
        stop: Sequence[str] = (),
        slide: bool = False,
        raw: bool = False,
    ) -> Iterator[str]:
        """Return the text of `generate` without the prompt, piece by piece while it is drawn.

        Raises at once what `generate` raises.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        cut = (max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stops)
        sample = SampleConfig(prompt, *cut)
        problems = [f"{field} {rule}" for field, rule in sample_problems(sample)]
        if not isinstance(seed, SupportsIndex) or not 0 <= index(seed) < 2**32:
            problems.append(f"seed must be an integer in [0, 2**32), not {seed!r}")
        if problems:
            raise ConfigError(problems)
        key = sample_key(index(seed))
        request = text_request(self.tokenizer, self.config, sample, key, raw)
        engine = self._decoder.with_slots(1)
        pieces = continue_texts(engine, self.tokenizer, [request], slide, seconds=FOR_READERS)
        return (piece.text for piece in pieces)

    @cached_property
    def _decoder(self) -> Engine:
        """The parameters on an engine whose own slots are never used."""
        dtype = jax.tree.leaves(self.params)[0].dtype
        return Engine(self.config.model, self.params, dtype=str(dtype))

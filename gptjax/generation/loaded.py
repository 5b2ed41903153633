"""A run, loaded for use: its config, parameters and tokenizer, and text from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

import jax

from gptjax.base.errors import ConfigError
from gptjax.base.tree import Tree
from gptjax.config import Config, SampleConfig
from gptjax.config.validation import sample_problems
from gptjax.generation.sampling import stream_text
from gptjax.tokenizers.plain import Tokenizer

DEFAULTS = SampleConfig()


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its config, tokenizer and step."""

    config: Config
    """The config of the run."""
    params: Tree
    """Its parameters, float32, for `GPT(run.config.model).apply({"params": run.params}, ...)`."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    step: int
    """The step at which the checkpoint was saved; 0 for a model that is not a run's."""
    origin: str
    """Where it was found, in words for messages."""

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        temperature: float = DEFAULTS.temperature,
        top_k: int | None = DEFAULTS.top_k,
        seed: int = 0,
    ) -> str:
        """Return `prompt` and the text that follows, as `python -m gptjax.generate` prints them.

        Stops at end-of-text or after `max_new_tokens` tokens. A `temperature` of 0 takes the most
        likely token; `top_k` None keeps the whole vocabulary. The same seed gives the same text.
        Raises `ConfigError` for numbers out of range, `UserError` for a prompt that the tokenizer
        cannot encode.
        """
        sample = SampleConfig(prompt, max_new_tokens, temperature, top_k)
        return prompt + "".join(self.stream(sample, seed))

    def stream(self, sample: SampleConfig, seed: int = 0, number: int = 0) -> Iterator[str]:
        """Yield the text after `sample.prompt` while it is sampled; `number` varies the text."""
        problems = [f"{field} {rule}" for field, rule in sample_problems(sample)]
        if not isinstance(seed, SupportsIndex) or not 0 <= index(seed) < 2**32:
            problems.append(f"seed must be an integer in [0, 2**32), not {seed!r}")
        if problems:
            raise ConfigError(problems)
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number)
        return stream_text(self.config.model, self.params, self.tokenizer, key, sample)

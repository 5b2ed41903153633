"""One sequence of a request on its way through the server, and what is told about it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gptjax.config import SampleConfig
from gptjax.generation.requests import Token
from gptjax.serving.refusals import Refusal
from gptjax.serving.transcript import Piece, Transcript


class PromptScores(NamedTuple):
    """The log-probability of every token of a prompt but the first."""

    tokens: Sequence[Token]


News = Piece | PromptScores | Refusal
"""What a job says: scores first, if they are wanted, then pieces; or the end by a refusal."""


@dataclass(eq=False)
class Job:
    """A prompt, how to continue it, and who listens.

    `listen` is called in the scheduler's thread, for the last time with a piece that has a `finish`
    or with a refusal.
    """

    prompt: tuple[int, ...]
    """At least one token id."""
    sample: SampleConfig
    max_tokens: int
    """Tokens to draw; 0 only scores the prompt."""
    seed: int
    number: int
    """Which sample of the prompt this is: with the seed it decides every draw."""
    transcript: Transcript
    listen: Callable[[News], None]
    wants_top: bool = False
    wants_scores: bool = False
    """Whether the prompt is scored."""
    arrived: float = field(default_factory=time.perf_counter)
    """In seconds, of `time.perf_counter`."""
    is_cancelled: bool = False

    @property
    def left(self) -> int:
        """Tokens that may still be drawn."""
        return self.max_tokens - self.transcript.drawn

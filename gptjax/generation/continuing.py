"""Texts on an engine: any number of sequences through its slots, pieces of text as they come.

A call of the device draws 1 token at first, then 2, 4, ... 32: a short answer feels instant, and a
long one pays little for calls. For readers a call can be kept short; the tokens are the same.
"""

import dataclasses
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gptjax.generation.decoding import CHUNK
from gptjax.generation.engine import Engine
from gptjax.generation.requests import Event, GenerationRequest, Token
from gptjax.generation.texts import TextStream
from gptjax.tokenizers.plain import Tokenizer

FOR_READERS = 0.1  # seconds: text that comes in smaller pieces looks no smoother
CHUNK_BESIDE_A_QUEUE = 8  # tokens of a call while sequences wait for a slot that may become free


class Continued(NamedTuple):
    """What a sequence has gained."""

    number: int
    """Its place among the requests."""
    text: str
    """Whole characters only."""
    tokens: list[Token]
    """Up to the one that ended the text, which may be end-of-text."""
    finish: str | None
    """`stop` after end-of-text or a stop text, `length` after `max_new_tokens` or at the end of the
    context, None if it goes on."""


def continue_texts(
    engine: Engine,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    slide: bool = False,
    wants_top: bool = False,
    seconds: float | None = None,
) -> Iterator[Continued]:
    """Continue all requests and yield the text of each, without its prompt, as it is drawn.

    A text ends before the first of its sample's stop texts, and the slot is free at once. When the
    context is full the text ends, or, with `slide`, its newest half is read as a new prompt, and
    the sequence goes on with the random numbers that come next. With `wants_top` tokens have their
    alternatives. Calls of the device last about `seconds` at most, or a token; by default nothing
    depends on the time, as processes that share a model need it. The slots are released at the end,
    also if the iterator is closed early.
    """
    waiting = deque(
        _Growing(number, request, TextStream(tokenizer, request.sample.stop), engine.context, slide)
        for number, request in enumerate(requests)
    )
    running: dict[int, _Growing] = {}

    def hear(event: Event) -> Continued:
        sequence = running[event.slot]
        gained = sequence.hear(event)
        if gained.finish or sequence.is_full:
            engine.release(event.slot)
            del running[event.slot]
        if sequence.is_full:
            waiting.appendleft(sequence)
        return gained

    steps = 1
    try:
        while waiting or running:
            while waiting and engine.free:
                sequence = waiting.popleft()
                event = engine.admit(sequence.next_request(), wants_top)
                running[event.slot] = sequence
                yield hear(event)
            longest = CHUNK_BESIDE_A_QUEUE if waiting else CHUNK
            steps, began = min(steps, longest), time.perf_counter()
            events = engine.decode(steps)
            steps = _next_steps(steps, time.perf_counter() - began, seconds)
            for event in events:
                yield hear(event)
    finally:
        for slot in running:
            engine.release(slot)


def _next_steps(steps: int, took: float, seconds: float | None) -> int:
    """Tokens of the next call, if one of `steps` tokens took so many seconds."""
    if seconds is None or took <= seconds / 2:
        return min(2 * steps, CHUNK)
    return steps if took <= seconds else max(1, steps // 2)


class _Growing:
    """A sequence between its request and its end."""

    def __init__(
        self, number: int, request: GenerationRequest, stream: TextStream, context: int, slide: bool
    ):
        self.number, self._request, self._stream = number, request, stream
        self._kept = max(1, context // 2) if slide else None
        self._drawn: list[int] = []
        self.is_full = False

    def next_request(self) -> GenerationRequest:
        """The request as it was made; of one that has filled the context, the newest half."""
        if not self.is_full:
            return self._request
        assert self._kept is not None
        self.is_full = False
        sample, drawn = self._request.sample, len(self._drawn)
        return self._request._replace(
            prompt=[*self._request.prompt, *self._drawn][-self._kept :],
            sample=dataclasses.replace(sample, max_new_tokens=sample.max_new_tokens - drawn),
            drawn=drawn,
        )

    def hear(self, event: Event) -> Continued:
        """Take what was drawn; sets `is_full` if the context is full and shall slide."""
        pieces: list[str] = []
        for count, token in enumerate(event.tokens, 1):
            self._drawn.append(token.id)
            if token.id not in self._request.stop_tokens:
                pieces.append(self._stream.push(token.id))
            if self._stream.stopped:
                return Continued(self.number, "".join(pieces), event.tokens[:count], "stop")
        finish, wanted = event.finish, self._request.sample.max_new_tokens
        if finish == "length" and self._kept is not None and len(self._drawn) < wanted:
            finish, self.is_full = None, True
        if finish is not None:
            pieces.append(self._stream.finish())
        return Continued(self.number, "".join(pieces), event.tokens, finish)


def in_order(pieces: Iterable[Continued]) -> Iterator[Continued]:
    """The same pieces, one sequence after the other; those of the first unfinished come at once."""
    held: dict[int, list[Continued]] = defaultdict(list)
    current = 0
    for piece in pieces:
        held[piece.number].append(piece)
        while ready := held.pop(current, None):
            yield from ready
            current += ready[-1].finish is not None


def whole_texts(pieces: Iterable[Continued]) -> Iterator[Continued]:
    """Each sequence as one piece, in order."""
    parts: list[Continued] = []
    for piece in in_order(pieces):
        parts.append(piece)
        if piece.finish is not None:
            text = "".join(part.text for part in parts)
            tokens = [token for part in parts for token in part.tokens]
            yield Continued(piece.number, text, tokens, piece.finish)
            parts = []

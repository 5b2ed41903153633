"""What one sequence says: its tokens as text, each with its place, up to a text that stops it."""

from collections.abc import Sequence
from typing import NamedTuple

from gptjax.generation.requests import Token
from gptjax.generation.texts import TextStream
from gptjax.tokenizers.plain import Tokenizer


class Spoken(NamedTuple):
    """A token and the number of characters before it."""

    token: Token
    offset: int


class Piece(NamedTuple):
    """The next piece of a sequence's text, with the tokens whose text is complete by now."""

    text: str
    tokens: tuple[Spoken, ...]
    finish: str | None
    """`stop` or `length` if this is the last piece, else None."""
    drawn: int
    """Number of tokens drawn so far, those of a stop text and end-of-text among them."""


class Transcript:
    """Turns the drawn tokens of one sequence into text.

    Text that could be the beginning of a stop text waits, and so do its tokens: what follows a stop
    text, and the stop text itself, are never shown.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._stream = TextStream(tokenizer, stop)
        self._shown = 0  # characters
        self.drawn = 0
        """Number of tokens heard so far."""
        self._waiting: list[tuple[Spoken, int]] = []  # and where the text of each ends

    def hear(self, tokens: Sequence[Token], finish: str | None) -> Piece:
        """Take the next tokens; with `finish` they are the last ones.

        After `finish` of `stop`, the last token is the one that stopped the sequence, and no text.
        """
        texts = []
        last = len(tokens) - 1 if finish == "stop" else len(tokens)
        for place, token in enumerate(tokens):
            self.drawn += 1
            spoken = Spoken(token, self._stream.decoded)
            if place != last:
                texts.append(self._stream.push(token.id))
            self._waiting.append((spoken, self._stream.decoded))
            if self._stream.stopped:
                break
        if finish and not self._stream.stopped:
            texts.append(self._stream.finish())
        finish = "stop" if self._stream.stopped else finish
        text = "".join(texts)
        self._shown += len(text)
        return Piece(text, self._ready(finish), finish, self.drawn)

    def _ready(self, finish: str | None) -> tuple[Spoken, ...]:
        """Take the waiting tokens whose text is shown."""
        if self._stream.stopped:
            ready = [spoken for spoken, _ in self._waiting if spoken.offset < self._shown]
            self._waiting = []
        elif finish:
            ready = [spoken for spoken, _ in self._waiting]
            self._waiting = []
        else:
            count = 0
            while count < len(self._waiting) and self._waiting[count][1] <= self._shown:
                count += 1
            ready = [spoken for spoken, _ in self._waiting[:count]]
            del self._waiting[:count]
        return tuple(ready)

"""Tokens to text while they are drawn: whole characters only, and nothing of a stop text."""

import codecs
from collections.abc import Sequence

from gptjax.tokenizers.plain import Tokenizer


class TextStream:
    """The text of one sequence, token by token, up to the first of its stop texts.

    Text is returned as soon as it is certain. A character waits for its last byte, and an end that
    could begin a stop text waits until it is one or cannot become one. The text ends where the
    first stop text to be complete begins, the longest if several end with the same character. So it
    does not depend on how tokens cut the text.

    >>> from gptjax.tokenizers.plain import ByteTokenizer
    >>> stream = TextStream(ByteTokenizer(), stop=["so."])
    >>> [stream.push(token) for token in b"is so."], stream.stopped
    (['i', '', 's ', '', '', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Start an empty text; the texts of `stop` must not be empty."""
        self.stopped = False
        """Whether a stop text was met. Later tokens give no text."""
        self.decoded = 0
        """Characters of all tokens so far, those that are held back among them."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, but not yet certain

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now, often none."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token))
        self.decoded += len(text)
        return self._add(text)

    def finish(self) -> str:
        """The rest of the text after the last token; a character cut short becomes U+FFFD."""
        text = self._add(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        places = [(self._held.find(stop), len(stop)) for stop in self._stop]
        ends = [(place + length, place) for place, length in places if place >= 0]
        if ends:
            self.stopped, certain = True, min(ends)[1]
        else:
            certain = len(self._held) - self._uncertain()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _uncertain(self) -> int:
        """Length of the longest end of the held text with which a stop text begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

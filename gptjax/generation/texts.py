"""Tokens to text while they are drawn: whole characters only, and nothing of a stop text."""

import codecs
from collections.abc import Sequence

from gptjax.tokenizers.plain import Tokenizer


class TextStream:
    """The text of one sequence, token by token, up to the first of its stop texts.

    Text is returned as soon as it is certain. A character waits for its last byte, and an end that
    could begin a stop text waits until it does or does not. What `push` and `finish` return, joined
    together, is the text of all tokens before the first place at which a stop text begins, among
    those that are complete after the first token that completes one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Start an empty text; the texts of `stop` must not be empty."""
        self.stopped = False
        """Whether a stop text was met. Later tokens give no text."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, but not yet certain

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now, often none."""
        return self._add(self._decoder.decode(self._tokenizer.token_bytes(token)))

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
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped, certain = True, min(places)
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

"""The document, from any source: its id, its source, and its bytes, which should be UTF-8.

A document is read in parts of about 1 MiB, cut where no token can span the cut. Its own bytes alone
decide the places, so a document of any size is tokenised in bounded memory, by any number of
workers, exactly as if it had been read whole.

The cuts are safe for the patterns of gpt2, cl100k_base and o200k_base: on both sides of a cut each
pattern finds the same pre-tokens as in the whole text, and no merge crosses pre-tokens. If a
document has no such place for 8 MiB, or the tokenizer has another pattern, a cut may fall inside a
token; `tokenising` counts such cuts.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gptjax.base.errors import UserError

PART_BYTES = 2**20
UNBROKEN_BYTES = 8 * PART_BYTES  # text without a safe cut is cut anywhere, to bound memory
WINDOW_BYTES = 2**12
HASHED_BYTES = 2**16  # the beginning identifies a document, so none has to be read twice
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _after_text(then: bytes) -> bytes:
    """Places where `then` follows anything but white space.

    White space is ASCII's, and the UTF-8 of U+0085, A0, 1680, 2000-200A, 2028, 2029, 202F, 205F and
    3000.
    """
    longer = rb"\xc2[\x85\xa0]", rb"\xe1\x9a\x80", rb"\xe2\x81\x9f", rb"\xe3\x80\x80"
    longer = (*longer, rb"\xe2\x80[\x80-\x8a\xa8\xa9\xaf]")
    not_longer = b"".join(rb"(?<!%s%s)" % (blank, then) for blank in longer)
    return rb"(?<=[^ \t-\r\x1c-\x1f]%s)" % then + not_longer


# Cuts that no token spans, the best first: a tokenizer that repairs whole lines, as GPT-1's does,
# then sees whole lines.
_CUTS = tuple(
    re.compile(pattern)
    for pattern in (
        # After a single line end, and before neither white space, with which gpt2 would join it,
        # nor a slash, with which o200k_base would.
        _after_text(rb"\n")
        + rb"(?=[!-.0-~\xc3-\xe0\xe4-\xf4]|\xe3(?:[\x81-\xbf]|\x80[\x81-\xbf]))",
        # Before a blank, which all patterns join to what follows.
        _after_text(b"") + rb"(?= )",
        # After a letter or digit, and before a character that is none of letter, digit, mark and
        # apostrophe: the last resort in tables, Chinese and Japanese (U+4E00-9FBF, hiragana).
        rb"(?<=[0-9A-Za-z])(?=[\r\n,.;:])",
        rb"(?:(?<=\xe4[\xb8-\xbf][\x80-\xbf])|(?<=[\xe5-\xe8][\x80-\xbf]{2})"
        rb"|(?<=\xe9[\x80-\xbe][\x80-\xbf])|(?<=\xe3\x81[\x81-\xbf])|(?<=\xe3\x82[\x80-\x96]))"
        rb"(?=\xe3\x80\x82|\xef\xbc\x8c)",
    )
)


@dataclass(frozen=True)
class Document:
    """Text with an id and a source: bytes in memory, or in a file from `offset` on."""

    id: str
    source: str
    size: int
    content: bytes | Path
    offset: int = 0

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer at the end."""
        size = max(0, min(size, self.size - start))
        if isinstance(self.content, bytes):
            return self.content[start : start + size]
        try:
            with self.content.open("rb", buffering=0) as file:
                file.seek(self.offset + start)
                return file.read(size)
        except OSError as error:
            raise UserError(f"cannot read {self.content}: {error.strerror}") from error

    def part_end(self, start: int, stop: int) -> int:
        """The end of the part that begins at `start`: the first safe cut after 1 MiB, or `stop`."""
        at = start + PART_BYTES
        last = start + UNBROKEN_BYTES
        window = min(WINDOW_BYTES, PART_BYTES)
        while at < min(stop, last):
            before = max(start, at - 4)  # enough to know the character before a cut
            raw = self.read(before, min(at + window, last) - before)
            for cut in _CUTS:
                if match := cut.search(raw, at - before):
                    return min(before + match.start(), stop)
            if len(raw) <= at - before:  # the file has become shorter
                return stop
            at, window = before + len(raw), 8 * window
        if last >= stop:
            return stop
        while last < stop and (byte := self.read(last, 1)) and byte[0] & 0xC0 == 0x80:
            last += 1  # do not cut inside a character
        return last

    def parts(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop` part by part; a byte-order mark at the beginning is dropped."""
        while start < stop:
            end = self.part_end(start, stop)
            raw = self.read(start, end - start)
            yield raw.removeprefix(BYTE_ORDER_MARK) if start == 0 else raw
            start = end

    @cached_property
    def fraction(self) -> float:
        """A number in [0, 1) that depends only on the document's first 64 KiB."""
        digest = hashlib.blake2b(self.read(0, HASHED_BYTES), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def held_out_from(self, val_fraction: float) -> int:
        """The place to cut off the held-out end: the first line end after `1 - val_fraction`."""
        wanted = max(1, int(self.size * (1 - val_fraction)))  # some of it is always trained on
        line_end = self.read(wanted, PART_BYTES).find(b"\n")
        cut = wanted + line_end + 1
        if line_end < 0 or cut >= self.size:  # cut inside the line, but not inside a character
            cut = wanted
            while (byte := self.read(cut, 1)) and byte[0] & 0xC0 == 0x80:
                cut += 1
        return cut


@dataclass(frozen=True)
class Passage:
    """Bytes `start` to `stop` of a document: all of it, or one worker's part of a long one."""

    document: Document
    start: int
    stop: int

    @property
    def ends_document(self) -> bool:
        """Whether the document's last byte is in it."""
        return self.stop == self.document.size

    def split(self, val_fraction: float, ends: bool) -> Iterator[tuple[str, int, int, bool]]:
        """(train or val, start, stop, whether end-of-text follows) for each split with a part.

        The hash of a document sends all of it to one split; with `ends`, its last part is held out
        instead.
        """
        document = self.document
        if not ends:
            split = "val" if val_fraction and document.fraction < val_fraction else "train"
            yield split, self.start, self.stop, self.ends_document
            return
        cut = document.held_out_from(val_fraction)
        if self.start < cut:
            yield "train", self.start, min(self.stop, cut), cut <= self.stop
        if cut < self.stop:
            yield "val", max(self.start, cut), self.stop, self.ends_document

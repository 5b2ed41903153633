"""The contents of a unit: the amount of text, its side of the split, and its oddities.

They are found while the text passes on its way to the tokenizer. `look` decides beforehand, from a
few documents, how validation is held out. If those are not all documents, the full text may say
otherwise in the end.

The digest of the contents is the same however the text is stored and cut into units: a polynomial
in the hashes of the parts of all documents, which can be joined from those of its stretches.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from gptjax.preparation.documents import PART_BYTES, Passage
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.readers import passages_of
from gptjax.preparation.units import Unit

MANY = 100  # documents
LOOKED = 1000  # most documents to look at before the text is read
_PRIME = 2**127 - 1
_BASE = 0x1F3D5B79A2C4E6081B3C5D7F9A0E2C46


@dataclass(frozen=True)
class Digest:
    """A digest of a sequence of parts; `a.then(b)` is the digest of a followed by b."""

    value: int = 0
    parts: int = 0

    def then(self, later: "Digest") -> "Digest":
        """The digest of this sequence with another after it."""
        shifted = self.value * pow(_BASE, later.parts, _PRIME)
        return Digest((shifted + later.value) % _PRIME, self.parts + later.parts)

    def add(self, part: bytes, ends: bool) -> "Digest":
        """The digest with one more part, which may be the end of its document."""
        hashed = hashlib.blake2b(part, digest_size=16, person=b"end" if ends else b"part")
        return self.then(Digest(int.from_bytes(hashed.digest(), "big") % _PRIME, 1))

    @property
    def text(self) -> str:
        """32 hexadecimal digits of value and length."""
        content = f"{self.value} {self.parts}".encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass
class Scan:
    """The contents of one unit or several."""

    documents: int = 0
    bytes: int = 0
    val_bytes: int = 0
    """Bytes of the documents that their hash gives to validation."""
    digest: Digest = field(default_factory=Digest)
    oddities: Oddities = field(default_factory=Oddities)

    def count(self, passage: Passage, val_fraction: float) -> None:
        """Add a passage to the totals."""
        size = passage.stop - passage.start
        self.documents += passage.ends_document
        self.bytes += size
        if val_fraction and passage.document.fraction < val_fraction:
            self.val_bytes += size

    def merge(self, later: "Scan") -> None:
        """Add the contents of a later unit."""
        self.documents += later.documents
        self.bytes += later.bytes
        self.val_bytes += later.val_bytes
        self.digest = self.digest.then(later.digest)
        self.oddities.merge(later.oddities)

    def holds_out_ends(self, val_fraction: float) -> bool:
        """Whether the end of every document is validation, instead of some whole documents.

        A corpus of few documents can put nothing, or far too much, into validation by hash; that
        is when the share of bytes is off by more than three times.
        """
        if self.documents > MANY and self.documents * val_fraction < 1:
            return False  # the share is so small that holding out nothing is right
        share = self.val_bytes / max(1, self.bytes)
        return not (val_fraction / 3 <= share <= val_fraction * 3 and share < 1)


def read_parts(passage: Passage, found: Scan) -> Iterator[bytes]:
    """The parts of a passage, which enter digest and oddities of `found` as they pass."""
    for part in passage.document.parts(passage.start, passage.stop):
        _note_oddities(part, passage.document.id, found.oddities)
        found.digest = found.digest.add(part, False)
        yield part
    if passage.ends_document:
        found.digest = found.digest.add(b"", True)


def scan(unit: Unit, val_fraction: float) -> Scan:
    """Read a unit only to scan it."""
    found = Scan()
    for passage in passages_of(unit, found.oddities):
        found.count(passage, val_fraction)
        for _ in read_parts(passage, found):
            pass
    return found


def look(units: Sequence[Unit], val_fraction: float) -> tuple[Scan, bool]:
    """Totals of the first documents, and whether those are all; their digest is not taken."""
    found = Scan()
    for passage in passages_of(chain.from_iterable(units), found.oddities):
        if found.documents == LOOKED:
            return found, False
        found.count(passage, val_fraction)
    return found, True


def _note_oddities(part: bytes, where: str, oddities: Oddities) -> None:
    """Count the oddities of a part."""
    if not part.isascii():
        try:
            part.decode()
        except UnicodeDecodeError:
            oddities.add("not_utf8", where)
    if b"\0" in part:
        oddities.add("nul", where)
    if b"<|endoftext|>" in part:
        oddities.add("end_of_text", where)
    if len(part) >= PART_BYTES and b"\n" not in part:
        oddities.add("long_lines", where)

"""Documents: text files read in pieces, and their split into training and validation.

A document is a file. It is read in pieces that end where no token can span them, so that a file
of any size is tokenised in bounded memory, exactly as if it had been read whole.
"""

import codecs
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import UserError

PIECE_BYTES = 2**20
UNBROKEN_CHARS = 8 * PIECE_BYTES  # text without a single blank is cut anywhere, to bound memory
HASHED_BYTES = 2**16  # a document is known by its beginning, so that none need be read twice
# A blank or line end after text begins a new pre-token in GPT-2's pattern: no merge crosses it.
_BOUNDARY = re.compile(r"(?<=\S)(?=[ \n])")


@dataclass(frozen=True)
class Document:
    """Bytes `start` to `stop` of a UTF-8 file: a whole document, or the part one split gets."""

    path: Path
    start: int
    stop: int
    split: str = "train"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.stop - self.start

    def pieces(self) -> Iterator[str]:
        """The text in pieces of about 1 MiB, cut only between pre-tokens.

        A byte-order mark is dropped; what is no UTF-8 becomes U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        left, rest = self.size, ""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                while left:
                    raw = file.read(min(PIECE_BYTES, left))
                    if not raw:
                        break
                    left -= len(raw)
                    text = decoder.decode(raw)
                    if file.tell() - len(raw) == 0:
                        text = text.removeprefix("\ufeff")
                    rest += text
                    cut = _last_boundary(rest)
                    if not cut and len(rest) > UNBROKEN_CHARS:
                        cut = len(rest)
                    if cut and left:
                        yield rest[:cut]
                        rest = rest[cut:]
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        rest += decoder.decode(b"", final=True)
        if rest:
            yield rest

    def is_utf8(self) -> bool:
        """Whether the document's first 64 KiB are UTF-8 text."""
        with self.path.open("rb") as file:
            head = file.read(HASHED_BYTES)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return False
        return b"\0" not in head

    def fraction(self) -> float:
        """A number in [0, 1) that the document's first 64 KiB alone decide."""
        with self.path.open("rb") as file:
            digest = hashlib.blake2b(file.read(HASHED_BYTES), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def _last_boundary(text: str) -> int:
    """Position of the last safe cut in `text`, 0 where there is none."""
    span = 4096  # look at ever longer ends, since a cut is nearly always close
    while True:
        start = max(0, len(text) - span)
        cuts = [m.start() for m in _BOUNDARY.finditer(text, start) if m.start() > start]
        if cuts or start == 0:
            return cuts[-1] if cuts else 0
        span *= 8


def text_files(paths: Sequence[str]) -> list[Document]:
    """One document a file, in the order given; empty ones are left out.

    Raises `UserError` that names every path that is no readable file, or where no text is left.
    """
    if bad := [p for p in paths if not Path(p).is_file()]:
        raise UserError(f"no such text file: {', '.join(bad)}; expected paths of UTF-8 text files")
    documents = [Document(Path(p), 0, Path(p).stat().st_size) for p in paths]
    documents = [d for d in documents if d.size]
    if not documents:
        raise UserError(f"there is no text in {', '.join(paths)}: every file is empty")
    return documents


def standard_library() -> list[Document]:
    """The source of the running Python's standard library: about 1,630 files, 29 MB, no download.

    Files that are no UTF-8, a handful of its own test data, are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    # encodings and pydoc_data hold tables and help texts that programs wrote
    skip = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
    paths = sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    return text_files([str(p) for p in paths if _is_utf8(p)])


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True


def content_hash(documents: Sequence[Document]) -> str:
    """16 hexadecimal digits of all the text, which tell a changed corpus from the same one."""
    digest = hashlib.blake2b(digest_size=8)
    for document in documents:
        try:
            with document.path.open("rb") as file:
                while raw := file.read(PIECE_BYTES):
                    digest.update(raw)
        except OSError as error:
            raise UserError(f"cannot read {document.path}: {error.strerror}") from error
        digest.update(b"\xff")  # no byte of UTF-8: where a document ends counts too
    return digest.hexdigest()


def split_documents(documents: Sequence[Document], val_fraction: float) -> list[Document]:
    """Give every document to `train` or `val` by its hash: the same on any machine, in any order.

    A corpus of few documents can put nothing, or far too much, into validation that way; where the
    share of bytes is off by more than three times, the last part of every document is held out
    instead, cut at a line's end.
    """
    if val_fraction == 0:
        return list(documents)
    by_hash = [
        Document(d.path, d.start, d.stop, "val" if d.fraction() < val_fraction else "train")
        for d in documents
    ]
    total = sum(d.size for d in by_hash)
    share = sum(d.size for d in by_hash if d.split == "val") / total
    if val_fraction / 3 <= share <= val_fraction * 3 and share < 1:
        return by_hash
    return [part for d in documents for part in _hold_out_end(d, val_fraction)]


def _hold_out_end(document: Document, val_fraction: float) -> list[Document]:
    """Cut a document in two at the first line end after its first `1 - val_fraction`."""
    wanted = document.start + int(document.size * (1 - val_fraction))
    with document.path.open("rb") as file:
        file.seek(wanted)
        line = file.readline(PIECE_BYTES)
        cut = file.tell()
        if cut >= document.stop or not line.endswith(b"\n"):  # cut the line, but no character
            file.seek(wanted)
            cut = wanted
            while (byte := file.read(1)) and byte[0] & 0xC0 == 0x80:
                cut += 1
    parts = [
        Document(document.path, document.start, cut, "train"),
        Document(document.path, cut, document.stop, "val"),
    ]
    return [part for part in parts if part.size]

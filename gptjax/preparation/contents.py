"""The bytes of a file as text: decompressed, and UTF-16 and UTF-32 as UTF-8."""

import codecs
import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from gptjax.base.errors import UserError

CHUNK_BYTES = 2**20
PACKED = (".gz", ".zst", ".zstd")
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
# UTF-32's first, since its little-endian mark begins with UTF-16's
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_plain(path: Path) -> bool:
    """Whether a file needs no conversion to text; raises `UserError` if it is unreadable."""
    try:
        head = _head(path)
        return _packing(path, head) is None and _encoding(head) is None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def contents(path: Path) -> Iterator[bytes]:
    """The text of a file, chunk by chunk; raises `UserError` if a compressed file is damaged.

    Invalid UTF-16 and UTF-32 becomes a byte that is invalid in UTF-8.
    """
    try:
        yield from _as_utf8(_unpacked(path))
    except (EOFError, OSError, zlib.error, _zstd_error()) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(
            f"{path} cannot be unpacked: it is damaged or cut short ({error})"
        ) from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _packing(path: Path, head: bytes) -> str | None:
    """How a file is compressed, by its first bytes or else by its name."""
    suffix = path.suffix.lower()
    found = (packing for magic, packing in _MAGIC.items() if head.startswith(magic))
    return next(found, suffix if suffix in PACKED else None)


def _encoding(head: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def _as_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:  # some are empty
        head += chunk
        if len(head) >= 4:
            break
    if (encoding := _encoding(head)) is None:
        yield head
        yield from chunks
        return
    codecs.register_error("mark invalid", _mark_invalid)
    decoder = codecs.getincrementaldecoder(encoding)("mark invalid")
    yield decoder.decode(head).encode("utf-8", "surrogateescape")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", True).encode("utf-8", "surrogateescape")


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


def _unpacked(path: Path) -> Iterator[bytes]:
    """The contents of a file, of all its gzip members or zstd frames, chunk by chunk."""
    packing = _packing(path, _head(path))
    if packing in (None, ".gz"):
        with gzip.open(path) if packing else path.open("rb") as file:
            while raw := file.read(CHUNK_BYTES):
                yield raw
        return
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UserError(f"{path} needs zstandard: pip install 'gptjax[hub]'") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    with path.open("rb") as packed:
        while raw := packed.read(2**16):
            while raw:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(raw)
                raw = frame.unused_data
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends inside a frame")


def _zstd_error() -> type[Exception]:
    """The exceptions of a damaged zstd file; none can occur unless zstandard is loaded."""
    module = sys.modules.get("zstandard")
    return EOFError if module is None else module.ZstdError

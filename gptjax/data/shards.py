"""Token shards on disk, in the format of llm.c: a header of 256 int32, then the tokens.

Header: magic, version, count, zeros. uint16 tokens have magic 20240520 and version 1; uint32
tokens, for vocabularies above 65,536, have magic 20240801 and version 7. All little-endian.
Trainers that read that format read these shards.

Shards of other trainers are read where they lie, in two more layouts: `raw`, tokens and nothing
else (nanoGPT), and `npy`, a one-dimensional NumPy file (build-nanogpt).
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError  # NumPy reads a header as Python and may raise this

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import replaced, sha256_of

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
SHARD_TOKENS, MOST_SHARD_TOKENS = 2**20, 2**30  # the header counts up to 2**31 - 1
_FORMATS: dict[str, tuple[int, int]] = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
DTYPES = tuple(_FORMATS)
Stamp = tuple[int, int, int]
"""Inode, size in bytes and time of the last change in nanoseconds: another one after a write."""
LAYOUTS = ("llm.c", "raw", "npy")


@dataclass(frozen=True)
class ShardInfo:
    """A shard as the manifest lists it: file name (or path), tokens, sha256 of the whole file."""

    name: str
    tokens: int
    sha256: str
    layout: str = "llm.c"


def token_dtype(n_vocab: int) -> str:
    """The narrowest stored type that holds every id of the vocabulary.

    >>> token_dtype(50257), token_dtype(100277)
    ('uint16', 'uint32')
    """
    return "uint16" if n_vocab <= 2**16 else "uint32"


def write_shard(
    path: Path, tokens: np.ndarray | Iterable[np.ndarray], dtype: str, count: int | None = None
) -> ShardInfo:
    """Write one shard, atomically: an array of tokens, or many arrays with `count` in all."""
    parts = [tokens] if isinstance(tokens, np.ndarray) else tokens
    count = len(tokens) if isinstance(tokens, np.ndarray) else count
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = *_FORMATS[dtype], count
    digest = hashlib.sha256(header.tobytes())
    with replaced(path) as file:
        file.write(header.tobytes())
        for part in parts:
            if len(part) and part.max() > np.iinfo(dtype).max:
                raise ValueError(f"token id {part.max()} does not fit {dtype}")
            raw = part.astype(np.dtype(dtype).newbyteorder("<"), copy=False).tobytes()
            file.write(raw)
            digest.update(raw)
    return ShardInfo(path.name, int(header[2]), digest.hexdigest())


def write_shards(
    directory: Path,
    split: str,
    parts: Iterable[np.ndarray],
    total: int,
    dtype: str,
    shard_tokens: int,
) -> tuple[ShardInfo, ...]:
    """Write the `total` tokens of a split as shards of `shard_tokens`, a part at a time.

    The last shard takes the tail, so it has up to twice as many: other trainers' readers need a
    whole batch in every shard, and stop at a short one.
    """
    parts, part, shards = iter(parts), np.empty(0, dtype), []

    def following(count: int) -> Iterator[np.ndarray]:
        nonlocal part
        while count:
            part = part if len(part) else next(parts)
            yield part[:count]
            count, part = count - len(part[:count]), part[count:]

    full = max(1, total // shard_tokens) if total else 0
    for number in range(full):
        size = shard_tokens if number + 1 < full else total - shard_tokens * number
        path = directory / f"{split}_{number:06d}.bin"
        shards.append(write_shard(path, following(size), dtype, size))
    if next(parts, None) is not None:
        raise ValueError(f"there are more than {total} tokens of {split}")
    return tuple(shards)


def format_of(path: Path) -> str | None:
    """The type of the tokens behind a header of llm.c's; None if there is no such header."""
    if path.stat().st_size < HEADER_BYTES:
        return None
    magic = int(read_header(path)[0])
    return next((dtype for dtype, (known, _) in _FORMATS.items() if known == magic), None)


def read_header(path: Path) -> np.ndarray:
    """The first 256 int32 of a file, or fewer if it is shorter, whatever they mean.

    Raises `UserError` if the file cannot be read.
    """
    try:
        return np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def check_shard(path: Path, tokens: int, dtype: str, layout: str = "llm.c") -> None:
    """Compare a shard's size and header with its manifest; raises `UserError` naming the file."""
    again = "move its directory away and prepare the data again"
    magic, version = _FORMATS[dtype]
    if not path.is_file():
        raise UserError(f"shard {path} is missing though its manifest lists it: {again}")
    size = path.stat().st_size
    expected = _offset(path, layout) + tokens * np.dtype(dtype).itemsize
    if layout == "llm.c" and size >= HEADER_BYTES:
        header = read_header(path)
        if header[0] != magic:
            raise UserError(
                f"shard {path} has magic number {header[0]}, expected {magic} for "
                f"{dtype} tokens: it is damaged, or not a token shard; {again}"
            )
        if header[1] != version or header[2] != tokens:
            raise UserError(
                f"shard {path} has version {header[1]} and {header[2]} tokens in its "
                f"header, expected {version} and {tokens}: {again}"
            )
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(f"shard {path} is {what}: {size} bytes, expected {expected}; {again}")


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def require_same_content(path: Path, info: ShardInfo, dtype: str) -> None:
    """Read a whole shard that was written to; raises `UserError` if it is not as it was listed."""
    check_shard(path, info.tokens, dtype, info.layout)
    if sha256_of(path, lambda _: None) != info.sha256:
        raise UserError(
            f"shard {path} was changed while it was read, and is not the one of its manifest any "
            "more: bring the old file back, or prepare the data again, then rerun the same command"
        )


def _offset(path: Path, layout: str) -> int:
    """Bytes before the first token."""
    return npy_header(path)[0] if layout == "npy" else HEADER_BYTES if layout == "llm.c" else 0


def npy_header(path: Path) -> tuple[int, tuple[int, ...], np.dtype]:
    """Length in bytes, shape and type of a NumPy file's header; raises `UserError`."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
                file
            )
            return file.tell(), shape, dtype
    except (OSError, ValueError, TokenError) as error:
        raise UserError(f"shard {path} is damaged, or not a NumPy file: {error}") from error


def open_shard(path: Path, tokens: int, dtype: str, layout: str = "llm.c") -> np.ndarray:
    """Map a shard's tokens into memory, [tokens]; nothing is read until it is sliced.

    The map keeps a file descriptor until the array is dropped. It comes back as a plain array view,
    which slices three times faster than `np.memmap` does.
    """
    try:
        little = np.dtype(dtype).newbyteorder("<")
        mapped = np.memmap(path, little, "r", _offset(path, layout), (tokens,))
    except (OSError, ValueError) as error:
        check_shard(path, tokens, dtype, layout)  # says so if it was cut
        raise UserError(f"cannot map shard {path}: {error}") from error
    return mapped.view(np.ndarray)

"""What a committed checkpoint consists of, to the byte: Orbax does not notice a flipped bit."""

import json
import zlib
from pathlib import Path

from gptjax.files import write_atomically

INTEGRITY = "INTEGRITY.json"


def sign(step_dir: Path) -> None:
    """Write `INTEGRITY.json`: size and crc32 of every file of a committed step."""
    files = {str(p.relative_to(step_dir)): _checksum(p) for p in _files(step_dir)}
    write_atomically(step_dir / INTEGRITY, json.dumps(files, indent=0).encode())


def verify(step_dir: Path) -> str | None:
    """Compare a step with its `INTEGRITY.json`: None if all is well, else what is wrong.

    A step without one was committed but not signed before the process died; Orbax's commit is
    atomic, so it is good unless reading it fails.
    """
    path = step_dir / INTEGRITY
    if not path.exists():
        return None
    try:
        expected = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return f"{INTEGRITY} is not readable"
    for name, recorded in expected.items():
        file = step_dir / name
        if not file.is_file():
            return f"{name} is missing"
        if _checksum(file) != recorded:
            return f"{name} has changed since it was written"
    return None


def _files(step_dir: Path) -> list[Path]:
    hidden = {INTEGRITY}
    return sorted(p for p in step_dir.rglob("*") if p.is_file() and p.name not in hidden)


def _checksum(path: Path) -> list[int]:
    """[size in bytes, crc32]."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]

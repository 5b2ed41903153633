"""Checksums of a checkpoint, to the byte: Orbax does not notice a flipped bit.

`INTEGRITY.json` holds size and crc32 of every file of a step. It is written before the rename that
makes a directory a step, so a step without one is not what was committed. Each of several
processes signs the files that it wrote itself, and on restoring reads a share of all of them.
"""

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity, atomicity_types

from gptjax.base.files import write_atomically

INTEGRITY = "INTEGRITY.json"
UNFINISHED = atomicity_types.TMP_DIR_SUFFIX
Checksums = dict[str, list[int]]


class SignedStep(atomicity.AtomicRenameTemporaryPath):
    """The directory in which Orbax prepares a step, signed between its last write and the commit.

    Orbax finishes a step by a rename. Here that leads to a name which is still an unfinished
    step's; what lies there is signed, and a second rename commits it.
    """

    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> atomicity_types.TemporaryPath:
        """Where `final_path` is prepared: a step, or an item within one, which is not signed."""
        if UNFINISHED in final_path.parent.name:
            return atomicity.AtomicRenameTemporaryPath.from_final(final_path, **options)
        return super().from_final(final_path.with_name(final_path.name + UNFINISHED), **options)

    def get_final(self) -> epath.Path:
        """The step's directory once it is committed."""
        complete = super().get_final()
        return complete.with_name(complete.name.removesuffix(UNFINISHED))

    async def finalize(self) -> None:
        """Let Orbax finish, sign, commit."""
        await super().finalize()
        complete = super().get_final()
        await asyncio.to_thread(sign, Path(complete))
        await asyncio.to_thread(complete.rename, self.get_final())


def sign(step_dir: Path) -> None:
    """Write `INTEGRITY.json`, with what processes have signed of their own files taken over."""
    found: Checksums = {}
    for part in step_dir.glob(f"{INTEGRITY}.*"):
        found |= json.loads(part.read_text())
        part.unlink()
    for file in _files(step_dir):
        name = str(file.relative_to(step_dir))
        found[name] = found.get(name) or _checksum(file)
    _write(step_dir / INTEGRITY, found)


def sign_own(directory: Path, step: int, process: int) -> None:
    """Sign what a process has written of a step that is still being prepared, for `sign`."""
    step_dir = Path(SignedStep.from_final(epath.Path(directory / str(step))).get())
    own = [p for p in _files(step_dir) if f"ocdbt.process_{process}" in p.parts]
    names = (str(p.relative_to(step_dir)).replace(UNFINISHED, "") for p in own)
    _write(step_dir / f"{INTEGRITY}.{process}", dict(zip(names, map(_checksum, own), strict=True)))


def verify(step_dir: Path, process: int = 0, processes: int = 1) -> str | None:
    """Compare a step with its `INTEGRITY.json`: None if all is well, else what is wrong.

    Each of several `processes` looks at a share of the files, together at all of them.
    """
    path = step_dir / INTEGRITY
    if not path.exists():
        return f"it has no {INTEGRITY}, so nothing tells whether it is what was written"
    try:
        expected: Checksums = {str(k): [int(n) for n in v] for k, v in _read(path).items()}
        names = _shares({name: size for name, (size, _) in expected.items()}, processes)[process]
    except (ValueError, TypeError, AttributeError):
        return f"{INTEGRITY} is not readable"
    for name in names:
        file = step_dir / name
        if not file.is_file():
            return f"{name} is missing"
        if _checksum(file) != expected[name]:
            return f"{name} has changed since it was written"
    return None


def _shares(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Names in `count` parts of about the same size."""
    parts: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        parts[lightest].append(name)
        loads[lightest] += sizes[name]
    return parts


def _files(step_dir: Path) -> list[Path]:
    return sorted(
        p for p in step_dir.rglob("*") if p.is_file() and not p.name.startswith(INTEGRITY)
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, checksums: Checksums) -> None:
    write_atomically(path, json.dumps(checksums, indent=0).encode())


def _checksum(path: Path) -> list[int]:
    """[size in bytes, crc32]."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]

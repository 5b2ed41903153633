"""Checksums of a checkpoint, to the byte: Orbax does not notice a flipped bit.

`INTEGRITY.json` holds the size and crc32 of every file of a step. It is written before the rename
that commits the step, so a step without one has been changed since. All of the step is on the disk
by then, so that a power cut leaves it whole. Each of several processes signs the files that it
wrote itself, and on restore reads a share of all files.
"""

import asyncio
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath
from orbax.checkpoint.path import atomicity, atomicity_types

from gptjax.base.errors import UserError
from gptjax.base.files import reach_disk, write_atomically

INTEGRITY = "INTEGRITY.json"
DAMAGED = "damaged"
UNFINISHED = atomicity_types.TMP_DIR_SUFFIX
Checksums = dict[str, list[int]]


class SignedStep(atomicity.AtomicRenameTemporaryPath):
    """The directory in which Orbax prepares a step, signed between its last write and the commit.

    Orbax finishes a step by a rename. Here the new name still marks an unfinished step; then its
    files are signed, and a second rename commits it.
    """

    @classmethod
    def from_final(cls, final_path: epath.Path, **options: Any) -> atomicity_types.TemporaryPath:
        """Where `final_path` is prepared: a step, or an item inside one, which is not signed."""
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
        await asyncio.to_thread(_commit, Path(complete), Path(self.get_final()))


def _commit(step_dir: Path, final: Path) -> None:
    """Sign an unfinished step and rename it, each once what came before is on the disk."""
    sign(step_dir)
    reach_disk(*step_dir.rglob("*"), step_dir)
    step_dir.rename(final)
    reach_disk(final.parent)


def sign(step_dir: Path) -> None:
    """Write `INTEGRITY.json`; it includes the checksums that processes made of their own files."""
    found: Checksums = {}
    for part in step_dir.glob(f"{INTEGRITY}.*"):
        found |= json.loads(part.read_text())
        part.unlink()
    for file in _files(step_dir):
        name = str(file.relative_to(step_dir))
        found[name] = found.get(name) or _checksum(file)
    _write(step_dir / INTEGRITY, found)


def sign_own(directory: Path, step: int, process: int) -> None:
    """Sign a process's own files of an unfinished step, for `sign`."""
    step_dir = Path(SignedStep.from_final(epath.Path(directory / str(step))).get())
    own = [p for p in _files(step_dir) if f"ocdbt.process_{process}" in p.parts]
    reach_disk(*own)  # from this machine, which alone has them in memory
    names = (str(p.relative_to(step_dir)).replace(UNFINISHED, "") for p in own)
    _write(step_dir / f"{INTEGRITY}.{process}", dict(zip(names, map(_checksum, own), strict=True)))


def verify(
    step_dir: Path, process: int = 0, processes: int = 1, needed: Iterable[str] = ()
) -> str | None:
    """Compare a step with its `INTEGRITY.json`: None if all is well, else the fault.

    Each of several `processes` reads a share of the files; together they read all. Process 0 also
    looks for unsigned files. `needed` lists files or folders that a step must have.
    """
    path = step_dir / INTEGRITY
    try:
        if not path.exists():
            return f"it has no {INTEGRITY}, so it cannot be verified"
        expected = _signed(step_dir)
        if expected is None:
            return f"{INTEGRITY} is not readable"
        for item in needed:
            if not any(name == item or name.startswith(f"{item}/") for name in expected):
                return f"{item} is not in {INTEGRITY}"
        for name in _shares({k: size for k, (size, _) in expected.items()}, processes)[process]:
            if not (step_dir / name).is_file():
                return f"{name} is missing"
            if _checksum(step_dir / name) != expected[name]:
                return f"{name} has changed since it was written"
        return _stranger(step_dir, expected) if process == 0 else None
    except OSError as error:
        where = Path(error.filename or step_dir).name
        return f"{where} cannot be read: {error.strerror or error}"


def set_aside(step_dir: Path, problem: str) -> str:
    """Move a damaged step to the directory `damaged` beside all steps; a message about it."""
    step, target = step_dir.name, step_dir.parent.parent / DAMAGED / step_dir.name
    try:
        target.parent.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(
            f"checkpoint of step {step} is damaged ({problem}) and would be moved to "
            f"{target.parent}, but that is a file: move it away"
        ) from None
    while target.exists():
        target = target.with_name(target.name + "x")
    step_dir.rename(target)
    return (
        f"checkpoint of step {step} is damaged ({problem}): moved to {target}, going back to the "
        "one before"
    )


def refuse_if_lost(checkpoints: Path) -> None:
    """Raise `UserError` if there were steps and all of them are set aside."""
    if (damaged := checkpoints.parent / DAMAGED).is_dir():
        raise UserError(
            f"none of the checkpoints in {checkpoints} can be read; they are in {damaged} now. "
            "Copy one back from a backup, or start over with --fresh"
        )


def signed_content(step_dir: Path, name: str) -> bytes | None:
    """The content of one small file of a step; None if it differs from the signed content."""
    try:
        expected, content = _signed(step_dir), (step_dir / name).read_bytes()
    except OSError:
        return None
    good = expected is not None and expected.get(name) == [len(content), zlib.crc32(content)]
    return content if good else None


def _signed(step_dir: Path) -> Checksums | None:
    """The table of a step; None if it is damaged or empty."""
    try:
        table = json.loads((step_dir / INTEGRITY).read_bytes())
        return {str(k): [int(size), int(crc)] for k, (size, crc) in table.items()} or None
    except (ValueError, TypeError, AttributeError):
        return None


def _stranger(step_dir: Path, expected: Checksums) -> str | None:
    """An unsigned file; hidden files belong to desktops and network file systems."""
    for file in _files(step_dir):
        name = str(file.relative_to(step_dir))
        if name not in expected and not file.name.startswith("."):
            return f"{name} is not in {INTEGRITY}"
    return None


def _shares(sizes: dict[str, int], count: int) -> list[list[str]]:
    """The names, in `count` parts of about equal size."""
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


def _write(path: Path, checksums: Checksums) -> None:
    write_atomically(path, json.dumps(checksums, indent=0).encode())


def _checksum(path: Path) -> list[int]:
    """[size in bytes, crc32]."""
    size = crc = 0
    block = memoryview(bytearray(2**20))  # one for all: a new one would be a page fault each 4 KiB
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size, crc = size + count, zlib.crc32(block[:count], crc)
    return [size, crc]

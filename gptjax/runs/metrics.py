"""metrics.jsonl, the truth about a run: one row a step, flushed as it is written.

A resumed run cuts the file back to the restored step and writes the same rows again, so that a run
killed any number of times leaves the file of an unbroken one. Its checkpoints do not depend on the
file: if lines of it are damaged, the run keeps a copy of it and goes on with the others.
"""

import itertools
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically

Row = dict[str, Any]


class MetricsLog:
    """The rows of a run, in memory and on disk; the file does not change until a row is added."""

    def __init__(self, path: Path | None, step: int):
        """Open the log of a run that continues after `step`; later rows are cut off.

        Without a path the rows are kept only in memory. `note` names damaged lines that were left
        out, and where they are kept.
        """
        known, damaged = ([], []) if path is None else _readable_rows(path)
        self.rows = [row for row in known if row["step"] <= step]
        self.note = None
        if path is not None and step and (not self.rows or self.rows[-1]["step"] < step):
            self.note = (
                f"note     {path} lacks rows up to step {step}, from which the run goes on: it was "
                "deleted or cut"
            )
        self._path = path
        self._file: TextIO | None = None
        if path is not None and damaged:
            kept = _kept_aside(path)
            write_atomically(path, _lines_of(known))
            self.note = (
                f"{path} was damaged in line {', '.join(map(str, damaged))}: the run goes on "
                f"without these rows, and {kept} is the file as it was"
            )

    def append(self, row: Row) -> None:
        """Add a row; values that are None or not finite were not measured and are left out."""
        row = {k: v for k, v in row.items() if _is_measured(v)}
        file = self._file or self._rewrite()
        try:
            file.write(json.dumps(row) + "\n")
        except OSError:  # part of it may be there: the next row replaces the file
            with suppress(OSError):
                file.close()
            self._file = None
            raise
        self.rows.append(row)

    def amend(self, values: Row) -> None:
        """Add values to the last row, as far as they were measured: figures of its step."""
        self.rows[-1] |= {k: v for k, v in values.items() if _is_measured(v)}
        self.close()
        self._rewrite()

    def cut(self, step: int) -> None:
        """Forget the rows after `step`; the file changes with the next row."""
        self.close()
        self.rows, self._file = [row for row in self.rows if row["step"] <= step], None

    def sync(self) -> None:
        """Force the rows to the disk: called before a checkpoint that relies on them."""
        if self._path is not None and self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rewrite(self) -> TextIO:
        """Replace the file by one with only these rows, and open it at its end, if there is one."""
        if self._path is not None:
            write_atomically(self._path, _lines_of(self.rows))
        path = self._path or Path(os.devnull)
        self._file = path.open("a", buffering=1)
        return self._file


def read_rows(path: Path) -> list[Row]:
    """All rows of a metrics file; a last line cut off by a crash is ignored.

    Raises `UserError` that names the line where the file is damaged otherwise.
    """
    rows, damaged = _readable_rows(path)
    if damaged:
        raise UserError(
            f"{path} is damaged in line {damaged[0]}: fix the line, or rerun the command that "
            "trains, which leaves such lines out"
        )
    return rows


def _readable_rows(path: Path) -> tuple[list[Row], list[int]]:
    """The rows of a metrics file, and the numbers of damaged lines, from 1."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows: list[Row] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise ValueError(row["step"])
            rows.append(row)
        except (ValueError, TypeError, LookupError):
            if number < len(lines) or line.endswith(b"\n"):  # else a crash cut it off
                damaged.append(number)
    return rows, damaged


def _kept_aside(path: Path) -> Path:
    """A copy of a file beside it, under a name that no other content has."""
    content = path.read_bytes()
    names = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in itertools.count(1))
    copy = next(name for name in names if not name.exists() or name.read_bytes() == content)
    write_atomically(copy, content)
    return copy


def _lines_of(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _is_measured(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))

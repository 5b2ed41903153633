"""metrics.jsonl, the truth about a run: one row a step, flushed as it is written.

A resumed run cuts the file back to the restored step and writes the same rows again, so that a run
killed any number of times leaves the file of an unbroken one.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically

T = TypeVar("T")
Row = dict[str, Any]


class MetricsLog:
    """The rows of a run, in memory and on disk; the file stays as it is until a row is added."""

    def __init__(self, path: Path | None, step: int):
        """Open the log of a run that goes on after `step`; later rows are cut off.

        Without a path the rows are kept in memory alone.
        """
        known = [] if path is None else read_rows(path)
        self.rows = [row for row in known if row["step"] <= step]
        self._path = path
        self._file: TextIO | None = None

    def append(self, row: Row) -> None:
        """Add a row; values that are None or not finite were not measured and are left out."""
        row = {k: v for k, v in row.items() if _is_measured(v)}
        file = self._file or self._rewrite()
        self.rows.append(row)
        file.write(json.dumps(row) + "\n")

    def amend(self, values: Row) -> None:
        """Add values to the last row, whose validation a stop request cut short."""
        self.rows[-1] |= values
        self.close()
        self._rewrite()

    def sync(self) -> None:
        """Force the rows to the disk: called before a checkpoint that relies on them."""
        if self._path is not None and self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rewrite(self) -> TextIO:
        """Replace the file by one with just these rows, open at its end; nowhere without a path."""
        if self._path is not None:
            rows = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(self._path, rows.encode())
        path = self._path or Path(os.devnull)
        self._file = path.open("a", buffering=1)
        return self._file


def read_rows(path: Path) -> list[Row]:
    """All rows of a metrics file; a last line cut off by a crash is ignored.

    Raises `UserError` that names the line where the file is damaged otherwise.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise ValueError(row["step"])
        except (ValueError, TypeError, LookupError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(
                f"{path} is damaged in line {number}: fix or move it, then rerun the same command"
            ) from error
        rows.append(row)
    return rows


def _is_measured(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def with_waits(items: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each item, and the seconds that whoever asked for it waited.

    For batches this bounds how long the devices waited for data: they still had the step before.
    """
    asked = time.perf_counter()
    for item in items:
        yield item, time.perf_counter() - asked
        asked = time.perf_counter()


class Throughput:
    """Tokens per second between the ends of successive calls, with pauses left out."""

    def __init__(self, peak: float | None = None):
        """`peak` is the rate, in tokens a second, at which all devices would be at their peak."""
        self._last: float | None = None
        self._paused = math.inf  # the first call of all is not measured: memory is new to it
        self._peak = peak

    def measure(self, tokens: float, launched: float, launching: float = 0.0) -> Row:
        """Speed over the call that has just ended; it was `launched` then, in so many seconds.

        `tokens_per_second`, and `mfu`, the share of the peak (0 to 1); None if unknown. After a
        pause the call's launch is its beginning. A launch that takes longer than the call has taken
        since the last one ended did the work itself, as those of small programs on processors do.
        """
        now, began = time.perf_counter(), self._last
        if began is None and launched >= self._paused:
            began = launched
        self._last = now
        rate = None if began is None else tokens / max(now - began, launching)
        mfu = None if rate is None or self._peak is None else rate / self._peak
        return {"tokens_per_second": rate, "mfu": mfu}

    def pause(self) -> None:
        """Do not count the time from now to the launch of the next call."""
        self._last, self._paused = None, time.perf_counter()

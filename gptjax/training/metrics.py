"""metrics.jsonl, the truth about a run: one row a step, flushed as it is written.

A resumed run cuts the file back to the restored step and writes the same rows again, so that a run
killed any number of times leaves the file of an unbroken one.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from gptjax.files import write_atomically

Row = dict[str, Any]


class MetricsLog:
    """The rows of a run, in memory and on disk."""

    def __init__(self, path: Path, step: int):
        """Open the log of a run that goes on after `step`; later rows are cut off."""
        self.rows = [row for row in read_rows(path) if row["step"] <= step]
        lines = [json.dumps(row) + "\n" for row in self.rows]
        write_atomically(path, "".join(lines).encode())
        self._file = path.open("a", buffering=1)

    def append(self, row: Row) -> None:
        """Add a row; values that are None or not finite were not measured and are left out."""
        row = {k: v for k, v in row.items() if _is_measured(v)}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Force the rows to the disk: called before a checkpoint that relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a metrics file; a last line cut off by a crash is ignored."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _is_measured(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


class Throughput:
    """Tokens per second between the ends of successive updates, with pauses left out."""

    def __init__(self) -> None:
        self._last: float | None = None

    def measure(self, tokens: float) -> float | None:
        """Rate over the update that has just ended; None for the first after a pause."""
        now, last = time.perf_counter(), self._last
        self._last = now
        return None if last is None else tokens / (now - last)

    def pause(self) -> None:
        """Do not count the time from now to the next update's end."""
        self._last = None

"""Bytes, durations and progress bars as a terminal shows them."""

import math
from collections.abc import Callable
from typing import Any

LINES = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6}  # bytes a second, for estimates of time
ByteProgress = Callable[[int], None]
"""Called with the number of bytes just read, written or fetched."""


def byte_bars(rate: str = "") -> Any:
    """A `rich.progress.Progress` of bytes, speed and time left; `rate` adds a column of text."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn(rate),
        TimeRemainingColumn(),
        console=Console(force_jupyter=False),  # rich's bars for notebooks need another package
    )


def gibibytes(n: float) -> str:
    """Bytes as GiB, to three digits."""
    size = n / 2**30
    if size >= 1000:
        return f"{size:,.0f} GiB"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{math.floor(size * 10**digits + 0.5) / 10**digits:.{digits}f} GiB"


def how_long(size: int) -> str:
    """The time to fetch `size` bytes over common connections, in words."""
    times = []
    for line, rate in LINES.items():
        minutes = size / rate / 60
        times.append(f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(1, round(minutes))} min")
        times[-1] += f" at {line}"
    return ", ".join(times)

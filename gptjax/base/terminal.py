"""Bytes, durations and progress bars as a terminal shows them."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINES = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6}  # bytes a second, for estimates of time
ByteProgress = Callable[[int], None]
"""Called with the number of bytes just read, written or fetched."""


def hours_minutes_seconds(seconds: float) -> str:
    """Whole seconds as a clock shows them.

    >>> hours_minutes_seconds(75.9), hours_minutes_seconds(360000)
    ('0:01:15', '100:00:00')
    """
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


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


@contextmanager
def count_bar(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error: the count, the rate and the time left; yields what advances it.

    Where standard error is no terminal, one line says how many there are.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr, force_jupyter=False, highlight=False)
    if not console.is_terminal:
        print(f"{total:,} {unit}", file=sys.stderr, flush=True)
        yield lambda done: None
        return
    with Progress(
        MofNCompleteColumn(),
        TextColumn(unit),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    ) as bar:
        task = bar.add_task("", total=total, rate="")

        def advance(done: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=done, rate=f"{speed:,.1f} a second" if speed else "")

        yield advance


def gibibytes(n: float) -> str:
    """Bytes as GiB, to three digits."""
    size = n / 2**30
    if size >= 1000:
        return f"{size:,.0f} GiB"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{math.floor(size * 10**digits + 0.5) / 10**digits:.{digits}f} GiB"


def bytes_in_words(n: int) -> str:
    """Bytes in the unit that suits them.

    >>> bytes_in_words(300), bytes_in_words(3 * 2**19), bytes_in_words(5 * 2**30)
    ('1 KiB', '1.5 MiB', '5.00 GiB')
    """
    if n >= 2**30:
        return gibibytes(n)
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{math.ceil(n / 2**10)} KiB"


def how_long(size: int) -> str:
    """The time to fetch `size` bytes over common connections, in words."""
    times = []
    for line, rate in LINES.items():
        minutes = size / rate / 60
        times.append(f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(1, round(minutes))} min")
        times[-1] += f" at {line}"
    return ", ".join(times)

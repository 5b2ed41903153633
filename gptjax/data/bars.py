"""Progress bars of bytes on a terminal."""

from typing import Any


def byte_bars(rate: str = "") -> Any:
    """A `rich.progress.Progress` of bytes, their speed and the time left; `rate` shows more."""
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
    )

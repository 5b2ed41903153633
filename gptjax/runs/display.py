"""A run on the screen: messages, a live progress line on a terminal, plain lines elsewhere.

Messages also go to log.txt.
"""

import os
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gptjax.runs.metrics import Row

LINE_SECONDS = 5.0  # between plain progress lines
WAIT_SHARE = 0.01  # of a step; a longer wait for data is shown


class _Console(Console):
    """A console that goes silent when its reader leaves, as in `... | head`; the run goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        self.file = open(os.devnull, "w")  # noqa: SIM115


class Display:
    """Terminal and log.txt of one run; without a path for the log, nothing is shown or written."""

    def __init__(self, log_path: Path | None):
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
        path = log_path or Path(os.devnull)
        self._log = path.open("a", buffering=1, encoding="utf-8", errors="replace")
        file = None if log_path is not None else self._log
        self._console = _Console(highlight=False, markup=False, emoji=False, file=file)
        self._progress: Progress | None = None
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """Print a message and log it with the time."""
        self._console.print(text, soft_wrap=True)
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def table(self, title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Print a table and log its rows."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
            self._log.write("  " + "  ".join(row) + "\n")
        self._console.print(table)

    def start(self, step: int, max_steps: int) -> None:
        """Begin showing progress."""
        self._max_steps = max_steps
        self._second: tuple[int, float] | None = None  # step and time of the first line shown
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self._console,
                speed_estimate_period=120,
            )
            self._task = self._progress.add_task("", total=max_steps, completed=step, numbers="")
            self._progress.start()

    def update(self, row: Row) -> None:
        """Show one step's row; plain lines come every few seconds and with each validation."""
        step = row["step"]
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=_numbers(row))
        now = time.monotonic()
        if "val_loss" in row:
            self.say(f"step {step}/{self._max_steps}  {_numbers(row)}")
            if sources := _sources(row):
                self.say(f"  {sources}")
        elif self._progress is None and now >= self._next_line:
            self.say(f"step {step}/{self._max_steps}  {_numbers(row)}{self._left(step, now)}")
            self._next_line = now + LINE_SECONDS

    def _left(self, step: int, now: float) -> str:
        """Time to the end at the mean rate so far, without the first step and its compilation."""
        if self._second is None:
            self._second = (step, now)
            return ""
        done, seconds = step - self._second[0], now - self._second[1]
        return f"  left {_clock(seconds / done * (self._max_steps - step))}"

    def stop(self) -> None:
        """End the progress line, so that messages follow it."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Stop and close log.txt."""
        self.stop()
        self._log.close()


def _numbers(row: Row) -> str:
    parts = []
    if "train_loss" in row:
        parts.append(f"loss {row['train_loss']:.4f}")
    if "val_loss" in row:
        parts.append(f"val {row['val_loss']:.4f} +- {row['val_stderr']:.4f}")
    if "val_bits_per_byte" in row:
        parts[-1] += f" ({row['val_bits_per_byte']:.3f} bits/byte)"
    if "learning_rate" in row:
        parts.append(f"lr {row['learning_rate']:.2e}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
    if "mfu" in row:
        parts.append(f"{row['mfu']:.1%} MFU")
    if (share := _wait_share(row)) > WAIT_SHARE:
        parts.append(f"{share:.0%} waiting for data")
    return "  ".join(parts)


def _wait_share(row: Row) -> float:
    """Share of a step's time that the host waited for data; 0 if it was not measured."""
    if not {"data_wait", "tokens", "tokens_per_second"} <= set(row):
        return 0.0
    return row["data_wait"] * row["tokens_per_second"] / row["tokens"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _sources(row: Row) -> str:
    """Loss and epochs of every source of a mixture."""
    names = [key.removeprefix("epochs/") for key in row if key.startswith("epochs/")]
    return "; ".join(
        f"{name} val {row[f'val_loss/{name}']:.4f}, {row[f'epochs/{name}']:.2f} epochs"
        for name in names
    )

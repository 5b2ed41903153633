"""A run on the screen: messages, a live progress line on a terminal, plain lines elsewhere.

Messages also go to log.txt.
"""

import operator
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from gptjax.base.errors import UserError
from gptjax.base.terminal import hours_minutes_seconds
from gptjax.cluster.peers import as_user_error
from gptjax.config.names import TESTS
from gptjax.runs.metrics import Row

LINE_SECONDS = 5.0  # between plain progress lines, and for the means of speed and waits
FIGURES = ("acc", "acc_norm", "perplexity", "word_perplexity", "bits_per_byte")
WAIT_SHARE = 0.01  # a larger share of waits for data is shown
RATES = {"token": "tok/s", "example": "ex/s"}


class _Console(Console):
    """A console that goes silent when its reader leaves, as in `... | head`; the run goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        self.file = open(os.devnull, "w")  # noqa: SIM115


class Display:
    """Terminal and log.txt of one run; without a path for the log, nothing is shown or written.

    `unit` is what losses are means over, and what speed counts.
    """

    def __init__(self, log_path: Path | None, unit: str = "token"):
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
        path = log_path or Path(os.devnull)
        self._log = path.open("a", buffering=1, encoding="utf-8", errors="replace")
        file = None if log_path is not None else self._log
        self._console = _Console(highlight=False, markup=False, emoji=False, file=file)
        self._progress: Progress | None = None
        self._next_line = 0.0
        self._recent = _Recent(LINE_SECONDS)
        self._rate = RATES[unit]

    def say(self, text: str) -> None:
        """Print a message and log it with the time."""
        self._console.print(text, soft_wrap=True)
        self._write(text)

    def failed(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """As a context's exit: log the error that ends the run; the command prints it."""
        if isinstance(error, Exception):
            error = as_user_error(error)
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._write(f"error: {kind}{error}")

    def _write(self, text: str) -> None:
        indented = text.replace("\n", "\n  ")  # so that no line of a text looks like a message
        self._append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {indented}")

    def _append(self, line: str) -> None:
        """Log a line; on a full disk it waits in memory for the next one."""
        with suppress(OSError):  # the terminal has it
            self._log.write(f"{line}\n")

    def table(self, title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Print a table and log its rows."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
            self._append("  " + "  ".join(row))
        self._console.print(table)

    def start(
        self, step: int, max_steps: int, work: Callable[[int], float] = lambda step: step
    ) -> None:
        """Begin showing progress; `work` gives the work done before a step, in any unit."""
        self._max_steps, self._work = max_steps, work
        self._second: tuple[int, float] | None = None  # step and time of the first one shown
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=max_steps, completed=step, numbers="")
            self._progress.start()

    def update(self, rows: Sequence[Row]) -> None:
        """Show the rows of a call; plain lines come every few seconds and with each validation."""
        self._recent.add(rows)
        row = {**rows[-1], **self._recent.rates()}
        step, now = row["step"], time.monotonic()
        left = self._left(step, now)
        if self._progress is not None:
            self._progress.update(
                self._task, completed=step, numbers=_numbers(row, self._rate) + left
            )
        tests = _tests(row)
        if "val_loss" in row or tests:
            self.say(f"step {step}/{self._max_steps}  {_numbers(row, self._rate)}")
            if tests:
                self.say(f"  {tests}")
            if sources := _sources(row):
                self.say(f"  {sources}")
        elif self._progress is None and now >= self._next_line:
            self.say(f"step {step}/{self._max_steps}  {_numbers(row, self._rate)}{left}")
            self._next_line = now + LINE_SECONDS

    def _left(self, step: int, now: float) -> str:
        """Time to the end at the mean rate so far, without the first call and its compilation."""
        if self._second is None:
            self._second = (step, now)
            return ""
        done = self._work(step) - self._work(self._second[0])
        seconds = (now - self._second[1]) / done
        left = seconds * (self._work(self._max_steps) - self._work(step))
        return f"  left {hours_minutes_seconds(left)}"

    def stop(self) -> None:
        """End the progress line, so that messages follow it."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Stop and close log.txt."""
        self.stop()
        with suppress(OSError):
            self._log.close()


class _Recent:
    """Means of speed, MFU and waits over the rows of the last seconds, without pauses."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._parts: deque[tuple[float, ...]] = deque()  # seconds, tokens, waited, seconds at peak
        self._sums: tuple[float, ...] = (0.0,) * 4

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of a call that has a rate, and drop rows that are too old."""
        if not (rate := rows[-1].get("tokens_per_second")):  # a batch may have nothing to learn
            return
        tokens, waited = (sum(row[name] for row in rows) for name in ("tokens", "data_wait"))
        seconds = tokens / rate
        self._parts.append((seconds, tokens, waited, rows[-1].get("mfu", 0.0) * seconds))
        self._sums = tuple(map(operator.add, self._sums, self._parts[-1]))
        while self._sums[0] - self._parts[0][0] >= self._seconds:
            self._sums = tuple(map(operator.sub, self._sums, self._parts.popleft()))

    def rates(self) -> Row:
        """The means over these rows, and the share of the time spent waiting."""
        if not self._parts:
            return {}
        seconds, tokens, waited, at_peak = self._sums
        utilisation = {"mfu": at_peak / seconds} if at_peak else {}
        return {"tokens_per_second": tokens / seconds, "waiting": waited / seconds, **utilisation}


def _numbers(row: Row, rate: str) -> str:
    parts = []
    if "train_loss" in row:
        parts.append(f"loss {row['train_loss']:.4f}")
    if "val_loss" in row:
        error = f" +- {row['val_stderr']:.4f}" if row["val_stderr"] else ""  # of one example
        parts.append(f"val {row['val_loss']:.4f}{error}")
    if "val_bits_per_byte" in row:
        parts[-1] += f" ({row['val_bits_per_byte']:.3f} bits/byte)"
    if "val_accuracy" in row:
        parts.append(f"acc {row['val_accuracy']:.1%}  macro F1 {row['val_macro_f1']:.3f}")
    if "learning_rate" in row:
        parts.append(f"lr {row['learning_rate']:.2e}")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} {rate}")
    if "mfu" in row:
        parts.append(f"{row['mfu']:.1%} MFU")
    if (share := row.get("waiting", 0.0)) > WAIT_SHARE:
        parts.append(f"{share:.0%} waiting for data")
    return "  ".join(parts)


def _tests(row: Row) -> str:
    """The main figures of the tests of `train.evaluate_on`."""
    found = []
    for name in TESTS:
        figures = [f"{f} {row[f'{name}/{f}']:.4f}" for f in FIGURES if f"{name}/{f}" in row]
        found += [f"{name} {', '.join(figures)}"] if figures else []
    return "; ".join(found)


def _sources(row: Row) -> str:
    """Loss and epochs of every source of a mixture."""
    names = [key.removeprefix("epochs/") for key in row if key.startswith("epochs/")]
    return "; ".join(
        f"{name} val {row[f'val_loss/{name}']:.4f}, {row[f'epochs/{name}']:.2f} epochs"
        for name in names
    )

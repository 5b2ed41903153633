"""Keeps the account of a run while it runs, so that it survives the process at any moment.

A thread writes accounts.json every second, later every hundredth of the start's life: when a
process is killed, at most that much of its life is taken for time between two starts. The loop
never waits for this file, and a run goes on if it cannot be written.
"""

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import jax

from gptjax.cluster.agreement import BUG
from gptjax.cluster.peers import as_user_error
from gptjax.cluster.phases import Phase, Phases
from gptjax.runs.accounts import (
    DamagedError,
    Start,
    account_in_words,
    as_json,
    gap_before,
    goodput,
    read_accounts,
    seconds_by_kind,
    spent,
    to_go,
)
from gptjax.runs.metrics import Row

SHORTEST, LONGEST = 1.0, 30.0  # seconds between two writes
SHARE = 0.01  # of the life of a start that may be between two writes
LINE_SECONDS = 60.0  # between two lines about the account
PACKAGES = ("gptjax", "jax", "jaxlib")
GOODPUT, SECONDS, SPENT = "goodput", "seconds", "spent"  # in metrics.jsonl and results.json
Say = Callable[[str], None]


class Bookkeeper:
    """The account of one run, and of the start that this process is.

    Without a `path` it is kept in memory alone: so it is on all processes but 0.
    """

    def __init__(self, path: Path | None, phases: Phases, price: float | None = None):
        """Go on with the account at `path`; `price` is that of a device for an hour.

        `notes` has lines for the user. If the run was complete, nothing is written before `begin`.
        """
        self.notes: list[str] = []
        self._path, self._phases, self._price = path, phases, price
        now, devices = time.time(), jax.devices()
        began = now - sum(phases.so_far().values())
        self._own = Start(
            began,
            now,
            {},
            devices=len(devices),
            device=devices[0].device_kind,
            processes=jax.process_count(),
            price=price,
            versions={name: version(name) for name in PACKAGES},
        )
        self._before = self._read()
        last = self._before[-1] if self._before else None
        self._own.gap, note = gap_before(began, last)
        self.notes += [note] if note else []
        if price is not None and devices[0].platform == "cpu":
            self.notes.append(
                f"note     train.price is paid for CPUs as for GPUs: {len(devices)} of them"
            )
        self._closed, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._told = -math.inf
        if last is None or last.exit != 0:
            self._keep()

    def _read(self) -> list[Start]:
        if self._path is None:
            return []
        run = self._path.parent
        if not self._path.exists() and any((run / "checkpoints").glob("[0-9]*")):
            self.notes.append(f"note     {self._path} is not there: the account begins anew")
        try:
            return read_accounts(run)
        except (DamagedError, OSError) as error:
            self.notes.append(f"note     {error}: the account of this run begins anew")
            return []

    @property
    def is_kept(self) -> bool:
        """Whether this start is written down: not if it found a complete run and did nothing."""
        return self._thread is not None

    def begin(self, step: int, row: Row) -> None:
        """Go on from a step, whose row in metrics.jsonl is `row`; what was trained after is lost.

        A start that goes back to an earlier step calls this again.
        """
        trained = 0.0 if step == 0 else row.get(SECONDS, {}).get(Phase.TRAINING, math.inf)
        if self._own.from_step is None:
            self._own.from_step = step
        so_far = seconds_by_kind(self._starts())[Phase.TRAINING]
        self._own.lost += max(0.0, so_far - trained)
        self._keep()

    def reached(self, step: int) -> None:
        """Note the last step that was trained."""
        self._own.to_step = step

    def row(self) -> Row:
        """The account so far, for metrics.jsonl and results.json; it is written down soon, too."""
        self._wake.set()
        starts = self._starts()
        seconds = seconds_by_kind(starts)
        row: Row = {
            GOODPUT: round(goodput(seconds), 5),
            SECONDS: {name: round(s, 3) for name, s in seconds.items()},
        }
        if self._price is not None:
            row[SPENT] = round(spent(starts, self._price), 4)
        return row

    def tell(self, say: Say, work: Callable[[int], float], end: int) -> None:
        """Say the account so far, unless that was a moment ago; `work` and `end` as in `to_go`."""
        self._tell_problem(say)
        if (now := time.monotonic()) < self._told + LINE_SECONDS:
            return
        self._told = now
        starts = self._starts()
        left = to_go(starts, self._price or 0.0, work, end)
        share = goodput(seconds_by_kind(starts))
        say(f"goodput  {share:.1%} so far{self._price_in_words(starts, left)}")

    def tell_all(self, say: Say) -> None:
        """Say where all seconds of the run went."""
        self._tell_problem(say)
        starts = self._starts()
        words = account_in_words(seconds_by_kind(starts))
        say(f"goodput  {words}{self._price_in_words(starts, 0.0)}")

    def _tell_problem(self, say: Say) -> None:
        if self._problem:
            say(self._problem)
            self._problem = ""

    def _price_in_words(self, starts: list[Start], left: float) -> str:
        """What was spent, and what is to go; nothing without a price."""
        if (price := self._price) is None:
            return ""
        words = f"; price so far {_money(spent(starts, price))}"
        words += f", about {_money(left)} to go" if left > 0 else ""
        return f"{words} ({price:g} per GPU and hour)"

    def _starts(self) -> list[Start]:
        """All starts, this one up to now; any thread may ask."""
        so_far = self._phases.so_far().items()
        seconds = {phase.value: round(max(0.0, s), 3) for phase, s in so_far if s}
        own = dataclasses.replace(self._own, seconds=seconds, ended=time.time())
        return [*self._before, own]

    def _keep(self) -> None:
        """Write the account from now on."""
        if self._path is not None and self._thread is None:
            self._thread = threading.Thread(
                target=self._write_again_and_again, args=(self._path,), daemon=True
            )
            self._thread.start()

    def _write_again_and_again(self, path: Path) -> None:
        while not self._closed.is_set():
            life = self._write(path)
            self._wake.wait(min(LONGEST, max(SHORTEST, SHARE * life)))
            self._wake.clear()

    def _write(self, path: Path) -> float:
        """Replace the file; returns the life of this start. A failure is told once."""
        starts = self._starts()
        temporary = path.with_name(f".{path.name}.tmp")  # one name: a killed write leaves one file
        try:
            with temporary.open("wb") as file:
                file.write(as_json(starts))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._problem = None
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if self._problem is None:
                self._problem = (
                    f"{path} cannot be written: {error.strerror}. The run goes on; if it is "
                    "killed now, the account of its hours misses what came after the last write"
                )
        return starts[-1].life

    def failed(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """As a context's exit: write down with which code the block's error ends the process."""
        if error is None:
            return
        error = as_user_error(error)
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            self.end(error.code)
        else:
            otherwise = 130 if isinstance(error, KeyboardInterrupt) else BUG
            self.end(getattr(error, "exit_code", otherwise))

    def end(self, exit_code: int) -> int:
        """Write this start's last lines, the exit code among them, and return that."""
        self._own.exit = exit_code
        self.close()
        return exit_code

    def close(self) -> None:
        """Write the account for the last time."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None and self._path is not None:
            self._thread.join()
            self._write(self._path)


def _money(sum_of_money: float) -> str:
    return f"{sum_of_money:,.2f}" if sum_of_money < 100 else f"{sum_of_money:,.0f}"

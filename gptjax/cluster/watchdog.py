"""Ends a process that waits for ever: for another, for a device, or for a disk.

A process that dies is noticed by the others; one that lives but hangs, in a read from a disk that
went away or in a driver, is not: its heartbeat goes on, and the rest wait for it in an update
while the rent runs. A run of one process waits just so for a GPU that does not answer, and a
signal does not end it, for the loop never gets to see it. So each process ends itself when nothing
has happened for long, and whoever started them (`launch/node.sh`, Slurm) starts all again from the
last checkpoint.
"""

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gptjax.base.errors import UserError
from gptjax.cluster.agreement import exit_process

PATIENCE = 10  # times the longest wait so far, where that is more than was asked for
CHECKS = 20  # looks at the clock in the time that may pass
LONGEST_SLEEP = 60.0  # seconds between two of them


class StallError(UserError):
    """Nothing has happened for too long."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


class _Wait(NamedTuple):
    """What is being waited for, since when, and how long such a wait has taken at most before."""

    what: str
    since: float
    longest: float


class Watchdog:
    """Ends this process after `seconds` without a beat; 0 seconds never do."""

    def __init__(self, seconds: int):
        self._seconds, self._longest = seconds, 0.0
        self._wait: _Wait | None = None  # replaced as a whole: another thread reads it
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """Something was finished. The first beat begins the watch."""
        now = time.monotonic()
        if self._wait is not None:
            self._longest = max(self._longest, now - self._wait.since)
        self._wait = _Wait("nothing was finished", now, self._longest)

    def rest(self) -> None:
        """Do not watch until the next beat: compiling takes its time."""
        self._wait = None

    @contextmanager
    def saving(self, longest: float) -> Iterator[None]:
        """Watch a save, which has a limit of its own; `longest` is what one has taken so far."""
        self._wait = _Wait("a checkpoint was not saved", time.monotonic(), longest)
        yield
        self.rest()  # or the save would count as a wait for something else
        self.beat()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        pause, looked = min(LONGEST_SLEEP, self._seconds / CHECKS), time.monotonic()
        seen, quiet = None, 0.0
        while not self._closed.wait(pause):
            # no more than the pause or so: a process that was stopped, as by Ctrl-Z, does not hang
            passed, looked = min(time.monotonic() - looked, 2 * pause), time.monotonic()
            wait = self._wait
            quiet, seen = (quiet + passed if wait is seen else 0.0), wait
            if wait is None or quiet <= (allowed := max(self._seconds, PATIENCE * wait.longest)):
                continue
            faulthandler.dump_traceback(sys.stderr)
            exit_process(
                StallError(
                    f"{wait.what} for {allowed:,.0f} s (train.stall_seconds; the longest "
                    f"wait before took {wait.longest:,.1f} s): a process, a link, a device or a "
                    "disk hangs. Above is what each thread of this process was doing. Start the "
                    "run again, as launch/node.sh does; it goes on from its last checkpoint"
                )
            )

"""Ends a process that waits for ever for another.

A process that dies is noticed by the others; one that lives but hangs, in a read from a disk that
went away or in a driver, is not: its heartbeat goes on, and the rest wait for it in an update
while the rent runs. So each of several processes ends itself when nothing has happened for long,
and whoever started them (`launch/node.sh`, Slurm) starts all again from the last checkpoint.
"""

import faulthandler
import sys
import threading
import time

import jax

from gptjax.errors import UserError
from gptjax.training.agreement import leave

PATIENCE = 10  # times the longest wait so far, where that is more than was asked for
CHECKS = 20  # looks at the clock in the time that may pass
LONGEST_SLEEP = 60.0  # seconds between two of them


class StallError(UserError):
    """Nothing has happened for too long."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


class Watchdog:
    """Ends this process after `seconds` without a beat; 0 seconds, or a run of one, never do."""

    def __init__(self, seconds: int):
        self._seconds, self._longest = seconds, 0.0
        self._last: float | None = None
        self._closed = threading.Event()
        if seconds and jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self) -> None:
        """Something was finished. The first beat begins the watch."""
        now = time.monotonic()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now

    def rest(self) -> None:
        """Do not watch until the next beat: compiling and saving take their time."""
        self._last = None

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(LONGEST_SLEEP, self._seconds / CHECKS)):
            allowed, last = max(self._seconds, PATIENCE * self._longest), self._last
            if last is None or time.monotonic() - last <= allowed:
                continue
            faulthandler.dump_traceback(sys.stderr)
            leave(
                StallError(
                    f"nothing was finished for {allowed:,.0f} s (train.stall_seconds; the longest "
                    f"wait before took {self._longest:,.1f} s): a process or a link hangs. Above "
                    "is what each thread of this process was doing. Start the run again, as "
                    "launch/node.sh does; it goes on from its last checkpoint"
                )
            )

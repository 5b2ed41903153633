"""Ends a process that waits forever for another process, a device or a disk.

The others notice a process that dies. They do not notice one that hangs in a driver, or in a read
from a disk that went away: jax still sees it alive, and the others wait for it in a step while the
rent runs. A run of one process waits for a GPU that does not answer in the same way, and no signal
ends it, because the loop never gets to see the signal. So each process ends itself if nothing
happens for too long, and `launch/node.sh` or Slurm restarts all of them from the last checkpoint.
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

PATIENCE = 10  # a wait of this many times the longest so far is always allowed
CHECKS = 20  # number of looks at the clock within the allowed time
LONGEST_SLEEP = 60.0  # seconds between two looks


class StallError(UserError):
    """Nothing has happened for too long."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


class _Wait(NamedTuple):
    """A wait: what did not happen, since when, and the least that it may take."""

    what: str
    since: float
    floor: float


class Watchdog:
    """Ends this process after `seconds` without a heartbeat; never if `seconds` is 0.

    It watches only inside `watching`. An action that has taken long before may take ten times as
    long as its longest wait so far.
    """

    def __init__(self, seconds: int):
        self._seconds = seconds
        self._longest: dict[str, float] = {}  # wait for each action
        self._wait: _Wait | None = None  # replaced as a whole: another thread reads it
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def heartbeat(self) -> None:
        """Note that a part of the watched action was finished."""
        if (wait := self._wait) is None:
            return
        now = time.monotonic()
        self._longest[wait.what] = max(self._longest.get(wait.what, 0.0), now - wait.since)
        self._wait = wait._replace(since=now)

    @contextmanager
    def watching(self, what: str, floor: float = 0.0) -> Iterator[None]:
        """Watch one action, which may take `floor` seconds in any case.

        `what` tells the user that it did not happen. Afterwards the action around it, if there is
        one, is watched again.
        """
        around = self._wait
        self._wait = _Wait(what, time.monotonic(), floor)
        try:
            yield
        finally:
            self.heartbeat()
            self._wait = None if around is None else around._replace(since=time.monotonic())

    def close(self) -> None:
        """Stop watching for good."""
        self._closed.set()

    def _watch(self) -> None:
        sleep, looked = min(LONGEST_SLEEP, self._seconds / CHECKS), time.monotonic()
        seen, quiet = None, 0.0
        while not self._closed.wait(sleep):
            # count at most two sleeps: a process that Ctrl-Z stopped does not hang
            passed, looked = min(time.monotonic() - looked, 2 * sleep), time.monotonic()
            wait = self._wait
            quiet, seen = (quiet + passed if wait is seen else 0.0), wait
            if wait is None:
                continue
            longest = self._longest.get(wait.what, 0.0)
            if quiet <= (allowed := max(self._seconds, wait.floor, PATIENCE * longest)):
                continue
            faulthandler.dump_traceback(sys.stderr)
            exit_process(
                StallError(
                    f"{wait.what} for {allowed:,.0f} s (train.stall_seconds; the longest "
                    f"wait before took {longest:,.1f} s): a process, a link, a device or a "
                    "disk hangs. The stack of each thread of this process is printed above. "
                    "Restart the run, as launch/node.sh does: it continues from its last "
                    "checkpoint"
                )
            )

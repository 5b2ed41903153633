"""Ends a process that waits forever for another process, a device or a disk.

The others notice a process that dies. They do not notice one that hangs in a driver, or in a read
from a disk that went away: jax still sees it alive, and the others wait for it in a step while the
rent runs. A run of one process waits for a GPU that does not answer in the same way, and no signal
ends it, because the loop never gets to see the signal. So each process ends itself if nothing
happens for too long, and `launch/node.sh` or Slurm restarts all of them from the last checkpoint.
"""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from gptjax.base.errors import UserError

PATIENCE = 10  # a wait of this many times the longest so far is always allowed
CHECKS = 20  # number of looks at the clock within the allowed time
LONGEST_SLEEP = 2.0  # seconds between two looks
WORDS_SECONDS = 10.0  # for the last words, if nobody reads what this process says


class StallError(UserError):
    """Nothing has happened for too long."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


class _Wait(NamedTuple):
    """A wait: what did not happen, since when, and what it may take at least."""

    what: str
    since: float
    first: float
    """Seconds, as long as no part of it was ever finished."""
    floor: float
    """Seconds, afterwards."""


class Watchdog:
    """Ends this process after `seconds` without a heartbeat; never if `seconds` is 0.

    It watches only inside `watching`. An action that has taken long before may take ten times as
    long as its longest wait so far.
    """

    def __init__(self, seconds: int, process: int = 0):
        """`process` is the number of this process, for its last words."""
        self.seconds = seconds
        self._name = f"process {process}: " if process else ""
        self._longest: dict[str, float] = {}  # wait for each action
        self._wait: _Wait | None = None  # replaced as a whole: another thread reads it
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def heartbeat(self) -> None:
        """Note that a part of the watched action was finished."""
        if (wait := self._wait) is None:
            return
        now = time.monotonic()
        self._longest[wait.what] = max(self._longest.get(wait.what, 0.0), now - wait.since)
        self._wait = wait._replace(since=now)

    @contextmanager
    def watching(self, what: str, floor: float = 0.0, first: float = 0.0) -> Iterator[None]:
        """Watch one action, which may take `floor` seconds in any case, and `first` at first.

        `what` tells the user that it did not happen. Afterwards the action around it, if there is
        one, is watched again.
        """
        around = self._wait
        self._wait = _Wait(what, time.monotonic(), max(floor, first), floor)
        try:
            yield
        finally:
            self.heartbeat()
            self._go_on(around)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Watch nothing: this process waits for another that is watched itself."""
        around, self._wait = self._wait, None
        try:
            yield
        finally:
            self._go_on(around)

    def _go_on(self, around: _Wait | None) -> None:
        self._wait = None if around is None else around._replace(since=time.monotonic())

    def close(self) -> None:
        """Stop watching for good."""
        self._closed.set()

    def _watch(self) -> None:
        sleep, looked = min(LONGEST_SLEEP, self.seconds / CHECKS), time.monotonic()
        seen, quiet = None, 0.0
        while not self._closed.wait(sleep):
            # count at most two sleeps: a process that Ctrl-Z stopped does not hang
            passed, looked = min(time.monotonic() - looked, 2 * sleep), time.monotonic()
            wait = self._wait
            quiet, seen = (quiet + passed if wait is seen else 0.0), wait
            if wait is None:
                continue
            longest = self._longest.get(wait.what)
            floor = wait.first if longest is None else wait.floor
            longest = longest or 0.0
            if quiet > (allowed := max(self.seconds, floor, PATIENCE * longest)):
                self._end(wait.what, allowed, longest)

    def _end(self, what: str, allowed: float, longest: float) -> NoReturn:
        """Say what hangs, and leave past everything else: jax and the main thread may hang too."""
        code = StallError.exit_code
        last = threading.Timer(WORDS_SECONDS, os._exit, (code,))
        last.daemon = True
        last.start()
        print(_stacks(), file=sys.stderr)
        error = StallError(
            f"{what} for {allowed:,.0f} s (train.stall_seconds; the longest wait before took "
            f"{longest:,.1f} s): a process, a link, a device or a disk hangs. The stack of each "
            "thread of this process is printed above. Restart the run, as launch/node.sh does: it "
            "continues from its last checkpoint"
        )
        print(f"{self._name}error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _stacks() -> str:
    """The stack of each thread.

    faulthandler keeps Python's lock while it writes, and nothing could end this process if nobody
    read its standard error. So it writes to a file.
    """
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode("utf-8", "replace")

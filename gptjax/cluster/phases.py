"""The phases of a run: each is timed, for the account of its hours, and watched, for a hang.

Every second of a process belongs to one phase. A phase inside another takes its time from it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum

from gptjax.cluster.watchdog import Watchdog


class Phase(StrEnum):
    """What a process may be doing; the values are the names in accounts."""

    START = "start_up"
    COMPILING = "compiling"
    PREFLIGHT = "preflight"
    RESTORING = "restoring"
    TRAINING = "training"
    WAITING = "waiting_for_data"
    EVALUATION = "evaluation"
    SHOWING = "samples_and_plots"
    SAVING = "saving"
    ENDING = "ending"


FIRST = 6  # times train.stall_seconds: the first of a kind compiles, connects, meets cold disks
LONG = dict.fromkeys([Phase.START, Phase.COMPILING, Phase.PREFLIGHT, Phase.RESTORING], FIRST)
LONG[Phase.SAVING] = 3
"""Times `train.stall_seconds` that a phase may take; once, if it is not here."""
COMPILING_SECONDS = 600.0  # that every compilation may take, however small train.stall_seconds is
SAID = {
    Phase.START: "the run did not go on",
    Phase.COMPILING: "a program was not compiled",
    Phase.PREFLIGHT: "the preflight did not end",
    Phase.RESTORING: "no checkpoint was restored",
    Phase.TRAINING: "no step was finished",
    Phase.EVALUATION: "no batch was evaluated",
    Phase.SHOWING: "no sample or plot was made",
    Phase.SAVING: "a checkpoint was not saved",
    Phase.ENDING: "the run did not end",
}
"""What has not happened if a phase takes too long."""


class Phases:
    """The phase that this process is in, and the seconds of each so far."""

    def __init__(self, watchdog: "Watchdog", began: float | None = None):
        """The first phase is the start, since `began` by `time.perf_counter()`; None means now."""
        self.seconds = dict.fromkeys(Phase, 0.0)
        self._watchdog, self._phase = watchdog, Phase.START
        self._lock = threading.Lock()  # the account is written by a thread of its own
        self._since = time.perf_counter() if began is None else began

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in a phase, whose time is counted and limited, and then in the one before again."""
        before = self._enter(phase)
        floor = LONG.get(phase, 1) * self._watchdog.seconds
        if phase in (Phase.COMPILING, Phase.PREFLIGHT):
            floor = max(floor, COMPILING_SECONDS)
        try:
            with self._watchdog.watching(SAID[phase], floor, FIRST * self._watchdog.seconds):
                yield
        finally:
            self._enter(before)

    def waiting_for_0(self) -> AbstractContextManager[None]:
        """While process 0 works alone, in a phase of its own, nobody else is limited."""
        return self._watchdog.resting()

    def heartbeat(self) -> None:
        """Note that something was finished in this phase, so that its limit begins again."""
        self._watchdog.heartbeat()

    def count_as(self, phase: Phase, seconds: float) -> None:
        """Count so many seconds of the phase that this process is in as those of another."""
        with self._lock:
            self.seconds[phase] += seconds
            self.seconds[self._phase] -= seconds

    def so_far(self) -> dict[Phase, float]:
        """The seconds of each phase up to now; any thread may ask."""
        with self._lock:
            so_far = dict(self.seconds)
            so_far[self._phase] += time.perf_counter() - self._since
        return so_far

    def _enter(self, phase: Phase) -> Phase:
        with self._lock:
            now, before = time.perf_counter(), self._phase
            self.seconds[before] += now - self._since
            self._phase, self._since = phase, now
        return before

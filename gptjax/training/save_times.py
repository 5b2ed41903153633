"""When a checkpoint is saved by the clock, and when one that failed is tried again."""

import time
from collections.abc import Callable

from gptjax.runs.checkpoint import SaveError

PAUSE = 15.0  # seconds between two tries if a full disk was not the reason
PATIENCE = 600.0  # seconds until a run ends for its checkpoints if none is saved by the clock


class SaveClock:
    """Makes a save due once `seconds` have passed since the last one began; 0 means never."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._seconds, self._now = seconds, now
        self._began, self._is_new = now(), False

    def restart(self) -> None:
        """Note that a save begins."""
        self._began, self._is_new = self._now(), True

    @property
    def wish(self) -> bool:
        """Whether the clock of this process makes a save due."""
        return 0 < self._seconds <= self._now() - self._began

    def agreed(self, wished: bool) -> bool:
        """Whether a save is due, as all processes have agreed; call this once a call of the loop.

        What is agreed was wished one call before: right after a save, it is about that one.
        """
        is_new, self._is_new = self._is_new, False
        return wished and not is_new


class FailedSave:
    """A checkpoint that could not be written, from the first failure to the first success.

    It is tried again as soon as there is room, or, if room was not what was missing, after a pause;
    and once more, whatever is missing, when `patience` seconds have passed.
    """

    def __init__(
        self,
        error: SaveError,
        patience: float,
        has_room: Callable[[], bool],
        pause: float = PAUSE,
        now: Callable[[], float] = time.monotonic,
    ):
        self._patience, self._has_room, self._pause, self._now = patience, has_room, pause, now
        self._began, self._tries = now(), 0
        self.failed(error)

    def failed(self, error: SaveError) -> None:
        """Note that a try has failed now."""
        self.error, self._last, self.is_tried = error, self._now(), False
        self.lacks_room = not self._has_room()

    def tried(self) -> None:
        """Note that a try begins."""
        self._tries, self.is_tried = self._tries + 1, True

    @property
    def is_due(self) -> bool:
        """Whether to try again now."""
        if self.is_tried:
            return False
        if self.lacks_room and self._has_room():
            return True
        waited = self._now() - self._last
        return self._is_late or (not self.lacks_room and waited >= self._pause)

    @property
    def is_hopeless(self) -> bool:
        """Whether it was tried again, and has failed for longer than `patience`."""
        return self._tries > 0 and not self.is_tried and self._is_late

    @property
    def _is_late(self) -> bool:
        return self._now() - self._began >= self._patience

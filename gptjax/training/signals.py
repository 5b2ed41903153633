"""Ctrl-C and SIGTERM as a request that the loop reads, so that a run always ends with a save."""

import os
import signal
from types import FrameType


class StopRequest:
    """Within this context the first signal is noted; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        os.write(2, f"\n{self.signal.name}: stopping as soon as this update is saved\n".encode())

    @property
    def exit_code(self) -> int:
        """What shells report for a process that a signal ended: 128 plus its number."""
        return 128 + self.signal if self.signal is not None else 0

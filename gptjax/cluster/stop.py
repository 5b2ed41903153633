"""Ctrl-C and SIGTERM as a request that the loop reads, so that a run always ends with a save."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

Largest = Callable[[int], Callable[[], int]]


class StopRequest:
    """Within this context the first signal is noted; a second Ctrl-C interrupts at once.

    Several processes stop at the same call of `agree`, whichever of them received the signal.
    """

    def __init__(
        self,
        largest: Largest | None = None,
        answer: str = "stopping as soon as the steps under way are saved",
    ) -> None:
        """`largest` starts a maximum over all processes; None for a single process.

        `answer` is printed when a signal arrives.
        """
        self._answer = answer
        self.signal: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._largest = largest
        self._asked: Callable[[], int] | None = None
        self.wished = False
        """Whether a process had a wish at the last call of `agree` that all know of."""

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        # no other thread than the main one may handle signals; what runs there is not interrupted
        is_main = threading.current_thread() is threading.main_thread()
        handled = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self._before = {s: signal.signal(s, self._note) for s in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, wish: bool = False) -> None:
        """Learn what all processes knew at the last call; tell them what this one knows now.

        That is a signal, and whether it has the wish that the loop asks about, such as a save that
        its clock makes due. All processes must call this equally often. Answers come one call late,
        so nobody waits; a single process has its own answer at once.
        """
        if self._largest is None:
            self.wished = wish
            return
        number, wished = divmod(self._asked() if self._asked is not None else 0, 2)
        self.wished = bool(wished)
        if number:
            self.signal = signal.Signals(number)
        self._asked = self._largest((self._noted or 0) * 2 + wish)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = signal.Signals(number)
        if self._largest is None:
            self.signal = self._noted
        os.write(2, f"\n{self._noted.name}: {self._answer}\n".encode())

    @property
    def exit_code(self) -> int:
        """The code that shells report for a signal: 128 plus its number; 0 without a signal."""
        return 128 + self.signal if self.signal is not None else 0

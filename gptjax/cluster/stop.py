"""Signals as a request that the loop reads, so that a run always ends with a save.

SIGINT (Ctrl-C), SIGTERM (schedulers), SIGHUP (a closed terminal; ignored under nohup) and SIGUSR1
(a habit on Slurm) all ask for the same. Python runs a handler only between two of its own
instructions, and a compilation or a device that hangs gives it none. So a thread hears of each
signal too: it answers at once, and it ends the process if that was to leave at once and cannot.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Largest = Callable[[int], Callable[[], int]]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LEAVE_SECONDS = 1.0  # for the main thread to leave by itself after a second Ctrl-C
CLEAN_SECONDS = 5.0  # and if nothing is to be saved: it may remove what it was trying out
NOTHING_TO_SAVE = "stopping: this start has trained nothing yet"


class StopRequest:
    """Within this context the first signal is noted; a second Ctrl-C ends the process at once.

    Several processes stop at the same call of `agree`, whichever of them received the signal.
    """

    def __init__(
        self,
        largest: Largest | None = None,
        answer: str = "stopping as soon as the steps under way are saved",
        defers: bool = True,
    ) -> None:
        """`largest` starts a maximum over all processes; None for a single process.

        `answer` is printed when a signal arrives.
        """
        self._answer = answer
        self.defers = defers
        """Whether there is something to save; otherwise the first signal ends the process."""
        self.signal: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._handled = False  # whether the main thread knows of a signal
        self._largest = largest
        self._asked: Callable[[], int] | None = None
        self._has_left = threading.Event()
        self._leaves: BaseException | None = None  # what a signal has raised
        self._before: dict[signal.Signals, object] = {}
        self.wished = False
        """Whether a process had a wish at the last call of `agree` that all know of."""

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        # no other thread than the main one may handle signals; what runs there is not interrupted
        if threading.current_thread() is not threading.main_thread():
            return self
        heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True, name="signals").start()
        self._told_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        for number in STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            # None is a handler that Python does not know
            self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: Any
    ) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        signal.set_wakeup_fd(self._told_before)
        self._has_left.set()
        os.close(self._told)
        self.leaving(kind, error, where)

    def leaving(self, _: type[BaseException] | None, error: BaseException | None, __: Any) -> None:
        """As a context's exit: raise again what a signal raised, if it has become another error.

        XLA makes its own error of an exception in a host callback, for example.
        """
        if error is not None and self._leaves is not None and error is not self._leaves:
            raise self._leaves from None

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

    def settle(self) -> bool:
        """Wait for what all processes know now; returns whether they stop. All call this."""
        if self._largest is not None and (number := self._largest(self._noted or 0)()):
            self.signal = signal.Signals(number)
        return bool(self)

    def _note(self, number: int, _: FrameType | None) -> None:
        """In the main thread: remember the first signal; leave if nothing is to be saved."""
        again, self._handled = self._handled, True
        self._remember(number)
        if number == signal.SIGINT and (again or not self.defers):
            self._leaves = KeyboardInterrupt()
            raise self._leaves
        if not self.defers:
            self._leaves = SystemExit(128 + number)
            raise self._leaves

    def _listen(self, heard: int) -> None:
        """In a thread: answer the first signal; see that a process leaves that is to leave."""
        is_first = True
        while numbers := os.read(heard, 64):
            for number in numbers:
                if number not in self._before:
                    continue  # Python tells of every signal that it handles
                if is_first:
                    self._remember(number)
                    answer = self._answer if self.defers else NOTHING_TO_SAVE
                    os.write(2, f"\n{signal.Signals(number).name}: {answer}\n".encode())
                if number == signal.SIGINT and not is_first:
                    self._see_that_it_leaves(number, LEAVE_SECONDS)
                elif not self.defers:
                    self._see_that_it_leaves(number, CLEAN_SECONDS)
                is_first = False
        os.close(heard)

    def _see_that_it_leaves(self, number: int, seconds: float) -> None:
        if not self._has_left.wait(seconds):
            os.write(2, b"stopped\n")
            os._exit(128 + number)

    def _remember(self, number: int) -> None:
        if self._noted is None:
            self._noted = signal.Signals(number)
        if self._largest is None:
            self.signal = self._noted

    @property
    def exit_code(self) -> int:
        """The code that shells report for a signal: 128 plus its number; 0 without a signal."""
        return 128 + self.signal if self.signal is not None else 0

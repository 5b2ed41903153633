"""Trackers of a run: TensorBoard, W&B and trackio get the rows of metrics.jsonl.

The file is the truth. A row is handed over only when a checkpoint that covers it is on disk and no
later start can change it, so that a row that is trained again is not there twice. A process of its
own (`tracking`) hands over, so that no tracker can delay, break or end a run. Whatever it could not
do is done with the next checkpoint, or at the next start.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from gptjax.base.errors import UserError
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.metrics import MetricsLog, Row

LAST_WAIT = 60.0  # seconds that a run which is complete waits for its trackers
SHORT_WAIT = 5.0  # seconds that one which is stopped waits: its machine may be taken away


def require_installed(names: Sequence[str]) -> None:
    """Raise `UserError` that says how to install the trackers that are missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UserError(
            f"--train.track {' '.join(names)} needs {', '.join(missing)}: pip install "
            f"'gptjax[{','.join(missing)}]'"
        )


def settled(rows: Sequence[Row], committed: int, is_complete: bool) -> int:
    """The last step whose row will not change any more; 0 if there is none.

    The row of the newest checkpoint may still get a validation that a stop request cut short.
    """
    last = rows[-1]["step"] if rows else 0
    return committed if last > committed or is_complete else committed - 1


class _Giving:
    """One tracker's process, while it hands rows over."""

    def __init__(self, name: str, run: Path, step: int, errors: IO[bytes]):
        self.step, self._errors = step, errors
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptjax.runs.tracking", name, str(run), str(step)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the run
        )

    def reason(self) -> str:
        """The last line that it wrote."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with {self.process.returncode}"


class Trackers:
    """The trackers of one run, on process 0; without names it does nothing."""

    def __init__(
        self,
        names: Sequence[str],
        run: Path,
        log: MetricsLog,
        checkpointer: Checkpointer,
        say: Callable[[str], None],
    ):
        self._names, self._run, self._say = names, run.resolve(), say
        self._log, self._checkpointer = log, checkpointer
        self._giving: dict[str, _Giving] = {}
        self._given = dict.fromkeys(names, 0)
        self._is_complete = False

    def look(self) -> None:
        """Give every tracker that is not busy the rows that a checkpoint has come to cover."""
        if not self._names:
            return
        steps = self._checkpointer.steps()
        whole = steps[:-1] if self._checkpointer.is_saving else steps
        step = settled(self._log.rows, whole[-1] if whole else 0, self._is_complete)
        for name in self._names:
            self._notice_end(name)
            if name not in self._giving and 0 < step != self._given[name]:
                self._begin(name, step)

    def end(self, exit_code: int) -> int:
        """Note how the run ended, for `close`; returns the exit code."""
        self._is_complete = exit_code == 0
        return exit_code

    def close(self) -> None:
        """Give them all rows that will not change, and wait for them for a while."""
        self._wait_for_all()
        self.look()
        self._wait_for_all()

    def _begin(self, name: str, step: int) -> None:
        self._given[name] = step
        try:
            errors = TemporaryFile()  # noqa: SIM115
            self._giving[name] = _Giving(name, self._run, step, errors)
        except OSError as error:
            self._say(f"{name} got no rows: {error.strerror}. The run goes on without it")

    def _notice_end(self, name: str) -> None:
        giving = self._giving.get(name)
        if giving is None or giving.process.poll() is None:
            return
        del self._giving[name]
        if giving.process.returncode:
            self._say(
                f"{name} did not get all rows up to step {giving.step}: {giving.reason()}. The run "
                "goes on, and they are given again with the next checkpoint"
            )

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + (LAST_WAIT if self._is_complete else SHORT_WAIT)
        for name, giving in list(self._giving.items()):
            try:
                giving.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{name} is still taking rows, and goes on with that by itself")
            self._notice_end(name)

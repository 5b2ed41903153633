"""Checkpoints of a run in progress: saved in the background, tried again after a failure.

While steps are skipped the parameters may be bad, so no older checkpoint is deleted for theirs.
"""

import dataclasses
import errno
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax

from gptjax.base.errors import UserError
from gptjax.base.tree import count_bytes
from gptjax.cluster.agreement import on_process_0
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.evaluation.perplexity import Validation
from gptjax.runs.checkpoint import Checkpointer, SaveError
from gptjax.runs.display import Display
from gptjax.runs.incidents import INCIDENTS, NOT_FINITE, Incident, note_incident
from gptjax.runs.naming import BATCHES, ROWS
from gptjax.runs.ranking import LOSS
from gptjax.runs.space import has_room
from gptjax.training.save_times import PATIENCE, PAUSE, FailedSave, SaveClock
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, saved_items

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LOOKS_EVERY = 0.5  # seconds between two looks at a full disk when nothing can be trained
WRITES = 6  # tries of a small write that finds no room beside a save that fails


class Saving:
    """Saves one run. `clock` makes saves due by time."""

    def __init__(self, setup: Setup, checkpointer: Checkpointer, phases: Phases, display: Display):
        self._setup, self._checkpointer = setup, checkpointer
        self._phases, self._display = phases, display
        minutes = setup.config.train.save_every_minutes
        self.clock, self._patience = SaveClock(60 * minutes), 60 * minutes or PATIENCE
        self._failure: FailedSave | None = None
        self._is_put_off, self._bytes = False, 0

    @property
    def is_owed(self) -> bool:
        """Whether a save is due after the next step: one was postponed, or is to be tried again."""
        return self._is_put_off or (self._failure is not None and self._failure.is_due)

    def is_best(self, validation: Validation) -> bool:
        """Whether this validation is better than all that it can be compared with."""
        return self._checkpointer.ranking.would_lead(self._measured(validation))

    def _measured(self, validation: Validation) -> dict[str, Any]:
        """What is kept of a validation: the loss, and what else ranks checkpoints."""
        by = self._setup.config.train.best_by
        kept = {"val_loss": validation.loss, "val_measure": self._setup.data.loss_definition}
        if by == LOSS:
            return kept
        figures = self._setup.task.figures(self._setup.config, validation.sums)
        return {**kept, "best_by": by, f"val_{by}": figures[by]}

    def put_off(self, step: int) -> None:
        """Postpone the save after a skipped step to the next step."""
        if not self._is_put_off:
            self._display.say(f"step {step} was skipped, so its checkpoint is postponed")
        self._is_put_off = True

    def give_up(self, step: int, skipped: int, run: Path) -> NoReturn:
        """Set aside the checkpoints since the last accepted step; raises `UserError` with advice.

        The steps are noted in the directory of the `run`.

        The last step is `step`, and it and those before it, `skipped` in all, were skipped.
        """
        with suppress(SaveError):
            self.wait()
        good = self._checkpointer.go_back(step - skipped, self._display.say)
        steps = [step - skipped + 1, step]
        incident: Incident = {"kind": NOT_FINITE, "steps": steps, "checkpoint": good}
        on_process_0(lambda: note_incident(run, incident))
        self._display.say(
            f"steps {steps[0]} to {step} were skipped in a row, which is noted in {INCIDENTS}"
        )
        what_to_do = (
            "There is no earlier checkpoint: start over with --fresh and"
            if good is None
            else f"The checkpoint of step {good} is earlier and was verified now: rerun with"
        )
        raise UserError(
            f"{skipped} steps in a row had gradients that are not finite, the last at step {step}. "
            f"{what_to_do} a lower --optim.peak-lr"
        )

    def save(self, state: TrainState, keeps_all: bool = False) -> None:
        """Start saving, unless the last save failed and this one could not succeed yet.

        With `keeps_all` no other checkpoint is deleted for this one.
        """
        self.clock.restart()
        failure = self._failure
        if failure is None or failure.is_due or failure.is_tried:
            self._start(state, keeps_all)

    def _start(self, state: TrainState, keeps_all: bool = False) -> None:
        step, config = int(state.step), dataclasses.asdict(self._setup.config)
        items = saved_items(state, self._setup.program.trained)
        guards = self._setup.safeguards
        keeps_all = keeps_all or guards.watch.is_rising  # the run may have to go back
        cursor = {
            **self._setup.data_identity(step),
            ROWS: self._setup.source.rows_before(step),
            BATCHES: self._setup.ramp.as_lists(),
            **guards.cursor(state),
        }
        self._bytes, self._is_put_off = count_bytes(items), False
        if self._failure is not None:
            self._failure.tried()
        try:
            with self._phases.during(Phase.SAVING):
                self._checkpointer.save(step, items, config, cursor, keeps_all)
        except SaveError as error:
            self._note_failure(error)

    def note(self, step: int, validation: Validation) -> None:
        """Keep the figures of a validation with the checkpoint of its step, if there is one."""
        if math.isfinite(validation.loss):
            figures = self._measured(validation)
            self.beside_saves(lambda: self._checkpointer.note(step, figures))

    def beside_saves(self, write: Callable[[], None]) -> None:
        """Call `write`, and again if a save that fails has filled the disk, and leaves it."""
        for _ in range(WRITES):
            try:
                return write()
            except OSError as error:
                fails = self._checkpointer.is_saving or self._failure is not None
                if error.errno not in NO_ROOM or not fails or jax.process_count() > 1:
                    raise
            self.poll(waits=True)
            time.sleep(LOOKS_EVERY)  # Orbax deletes in the background what the save has left
        return write()

    def wait(self) -> None:
        """Block until the last save is on disk."""
        with self._phases.during(Phase.SAVING):
            self._checkpointer.wait()

    def poll(self, waits: bool = False) -> None:
        """Finish saves that have ended, or wait for them; one that failed is tried again later."""
        try:
            self._checkpointer.wait() if waits else self._checkpointer.poll()
        except SaveError as error:
            self._note_failure(error)
        self._note_success()

    def complete(self, state: TrainState, stop: StopRequest) -> None:
        """Block until the last state is on disk.

        If it cannot be written, try for as long as there is hope; once, if a stop request came.
        """
        was_tried = False
        with self._phases.during(Phase.SAVING):
            while True:
                self.poll(waits=True)
                if self._failure is None:
                    return
                if stop and was_tried:
                    raise self._failure.error
                if stop or self._failure.is_due:
                    was_tried = bool(stop)
                    self._start(state)
                else:
                    self._phases.heartbeat()
                    time.sleep(LOOKS_EVERY)

    def _note_success(self) -> None:
        """Forget a failure once a later save is on disk."""
        failure = self._failure
        if failure is not None and failure.is_tried and not self._checkpointer.is_saving:
            self._failure = None
            self._display.say("the checkpoint is written now")

    def _note_failure(self, error: SaveError) -> None:
        """Have the save tried again, or raise; a run of several processes fails at once.

        Only this process knows about the failure: the others would not join a second try.
        """
        if jax.process_count() > 1:
            raise error
        if self._failure is not None:
            self._failure.failed(error)
            if self._failure.is_hopeless:
                raise error
            return
        room = partial(has_room, self._checkpointer.directory, self._bytes)
        self._failure = FailedSave(error, self._patience, room)
        when = (
            f"{self._bytes / 1e6:,.1f} MB are free"
            if self._failure.lacks_room
            else f"{PAUSE:g} s have passed"
        )
        self._display.say(
            f"{error}. Training goes on, and the save is tried again as soon as {when}; the run "
            f"ends if it stays impossible for {self._patience / 60:.3g} minutes"
        )

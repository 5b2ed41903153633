"""The work between steps: save, validate, measure, sample and plot, as far as each is due.

The save comes first, so that whatever fails after it loses nothing. A validation, a sample or a
plot that fails is named, and the run goes on without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax

from gptjax.base.errors import first_line
from gptjax.cluster.agreement import broadcast_from_0, exit_process, is_process_0
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.evaluation.perplexity import Validation
from gptjax.runs.checkpoint import SaveError
from gptjax.runs.display import Display
from gptjax.runs.metrics import MetricsLog, Row
from gptjax.training.feed import due
from gptjax.training.measuring import Measuring
from gptjax.training.patience import early_end
from gptjax.training.saving import Saving
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.state import TrainState
from gptjax.training.validating import Validating


class Boundary:
    """The work that is due between two steps of one run."""

    def __init__(
        self,
        setup: Setup,
        saving: Saving,
        measuring: Measuring,
        showing: Showing,
        log: MetricsLog,
        display: Display,
        stop: StopRequest,
        phases: Phases,
    ):
        self._setup, self._saving, self._measuring = setup, saving, measuring
        self._showing, self._log, self._display = showing, log, display
        self._stop, self._phases = stop, phases
        self._validating = Validating(setup, stop, phases.heartbeat)

    def work(self, now: set[str], state: TrainState, count: int, is_skipping: bool) -> bool:
        """Do what is due after the step of the last row; its call wrote `count` rows.

        Returns whether the run ends here, because a stop request came or patience ended. Then it
        is saved, due or not. After a step that `is_skipping`, a save is postponed if it can be.
        """
        step, max_steps = self._log.rows[-1]["step"], self._setup.config.train.max_steps
        if "save" in now:
            if is_skipping and not (self._stop or step == max_steps):
                self._saving.put_off(step)
            else:
                self._save(state, is_skipping)
        validation = self._validated(state, step) if "validate" in now else None
        if validation is not None and self._judged(step, validation):
            self._save(state, is_skipping)
            self._saving.note(step, validation)
        if "measure" in now and not self._stop:
            self._measure(state, step)
        self._display.update(self._log.rows[-count:])
        stopping = bool(self._stop)  # a signal may come at any moment
        if validation is not None:
            stopping = self.ended_early(step) is not None or stopping
        if stopping:
            self._save(state, is_skipping)
        self._show(now, state, step)
        if self._stop and not stopping:  # it came meanwhile, and may have cut a sample short
            self._save(state, is_skipping)
        return stopping or bool(self._stop)

    def do_what_was_missed(self, state: TrainState, step: int) -> None:
        """Validate, measure and sample as due at the restored step, if that was cut short."""
        now = due(self._setup.config.train, step, False, False) if step else set()
        last = self._log.rows[-1] if self._log.rows else {}
        last = last if last.get("step") == step else {}  # its line may have been damaged
        misses = "validate" in now and bool(last) and "val_loss" not in last
        if broadcast_from_0(misses) and (validation := self._validated(state, step)) is not None:
            self._judged(step, validation)
        misses = "measure" in now and bool(last) and not self._measuring.is_in(last)
        if broadcast_from_0(misses) and not self._stop:
            self._measure(state, step)
        misses = "sample" in now and bool(last) and not self._showing.has_sample(step)
        if broadcast_from_0(misses) and not self._stop:
            self._show({"sample"}, state, step)

    def ended_early(self, step: int) -> str | None:
        """Why the run has ended with `step`, before its last one, by the rows of process 0."""
        train = self._setup.config.train
        words = early_end(self._log.rows, train) if step < train.max_steps else None
        return (words or "patience") if broadcast_from_0(words is not None) else None

    def _save(self, state: TrainState, keeps_all: bool) -> None:
        with self._phases.during(Phase.SAVING):
            self._log.sync()
            self._saving.save(state, keeps_all)

    def _validated(self, state: TrainState, step: int) -> Validation | None:
        """The validation; None if a stop request cut it short, or if it failed."""
        with self._passing_over("validation", step), self._phases.during(Phase.EVALUATION):
            return self._validating.validate(state)
        return None

    @contextmanager
    def _passing_over(self, what: str, step: int) -> Iterator[None]:
        """Name what fails in this block, and go on; one of several processes saves and leaves."""
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1:  # the others may wait for this one
                with suppress(SaveError):
                    self._saving.wait()
                exit_process(error)
            self._display.say(
                f"no {what} after step {step}: {type(error).__name__}: {first_line(error)[:200]}"
            )

    def _judged(self, step: int, validation: Validation) -> bool:
        """Keep a validation with its row and its checkpoint; returns whether it is the best."""
        is_best = bool(broadcast_from_0(self._saving.is_best(validation)))
        self._saving.note(step, validation)
        self._amend(self._validating.values(validation))
        return is_best

    def _measure(self, state: TrainState, step: int) -> None:
        found: Row = {}
        evaluating = self._phases.during(Phase.EVALUATION)
        with self._passing_over("measurement of evaluate_on", step), evaluating:
            found = self._measuring.measure(step, self._setup.evaluated_params(state))
        self._amend(found)

    def _amend(self, found: Row) -> None:
        """Add values to the row of this step."""
        if found and is_process_0():
            self._saving.beside_saves(lambda: self._log.amend(found))

    def _show(self, now: set[str], state: TrainState, step: int) -> None:
        with self._phases.during(Phase.SHOWING):
            if "sample" in now:
                params = self._setup.evaluated_params(state)
                beat, before_leaving = self._phases.heartbeat, self._saving.wait
                self._showing.sample(step, params, self._stop, beat, before_leaving)
            is_due = "validate" in now or ("save" in now and self._showing.is_old)
            if is_due and step < self._setup.config.train.max_steps:
                self._showing.plot(self._log.rows)  # after the last step, the loop plots

"""The steps of a run: dispatch a call, fetch the numbers of the one before, do what is due.

The device never waits for the host: a call takes one step or several, and its numbers are fetched
only after the next call has been dispatched. If a validation, a sample or a checkpoint is due, the
loop first finishes the call and writes its rows, so that no checkpoint is ahead of metrics.jsonl.
"""

import shlex
from contextlib import closing
from functools import partial

import jax

from gptjax.cluster.agreement import is_process_0
from gptjax.cluster.devices import peak_tokens_per_second
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.data.loader import batches_from, read_ahead
from gptjax.runs.bookkeeping import Bookkeeper
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RESULTS, RunDir
from gptjax.runs.display import Display
from gptjax.runs.metrics import MetricsLog, Row
from gptjax.runs.trace import Startup, StepTrace
from gptjax.runs.trackers import Trackers
from gptjax.training.boundary import Boundary
from gptjax.training.compiling import compile_missing
from gptjax.training.feed import by_call, due, rows_of_call
from gptjax.training.finishing import add_account, finish, has_results
from gptjax.training.measuring import Measuring
from gptjax.training.pace import UNMEASURED, Dispatched, Throughput, is_idle, with_waits
from gptjax.training.rolling_back import decide
from gptjax.training.saving import Saving
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.skipped import count_of_skipped, said_of
from gptjax.training.start import restore_or_start
from gptjax.training.state import TrainState

GIVE_UP_AFTER = 20  # steps in a row whose gradients are not finite


class Loop:
    """The steps between one start of a run and its stop."""

    def __init__(
        self,
        setup: Setup,
        run_dir: RunDir,
        checkpointer: Checkpointer,
        log: MetricsLog,
        display: Display,
        stop: StopRequest,
        startup: Startup,
        phases: Phases,
        books: Bookkeeper,
        measuring: Measuring,
        trackers: Trackers,
    ):
        self.setup, self.run_dir, self.checkpointer = setup, run_dir, checkpointer
        self.log, self.display, self.stop, self.startup = log, display, stop, startup
        self.phases, self.books, self.trackers = phases, books, trackers
        config, unit = setup.config, setup.task.unit
        self.showing = Showing(config, setup.tokenizer, run_dir, display, unit)
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        peak = peak_tokens_per_second(config, kind, count) if unit == "token" else None
        self.throughput = Throughput(peak)
        self.saving = Saving(setup, checkpointer, phases, display)
        self.boundary = Boundary(
            setup, self.saving, measuring, self.showing, log, display, stop, phases
        )

    def train(self, state: TrainState, step: int) -> int:
        """Step by step to the end, or to a stop request; returns the exit code.

        If the loss rises for good, the run goes back and on with other data, where that is asked
        for.
        """
        begun, reached = step, self._train_from(state, step)
        while reached is not None and self.setup.safeguards.watch.found is not None:
            self.display.stop()
            del state, reached  # or memory would have to hold two states
            state, step = restore_or_start(
                self.setup, self.checkpointer, self.run_dir, self.display, self.phases
            )
            self.log.cut(step)
            self.books.begin(step, self.log.rows[-1] if self.log.rows else {})
            reached = self._train_from(state, step)
        if reached is None and step == begun:
            self.display.say("stopped before the first step of this start: nothing was lost")
            return self.stop.exit_code
        return self._end(*(reached or (state, step)))

    def _train_from(self, state: TrainState, step: int) -> tuple[TrainState, int] | None:
        """Train until the run ends, stops or goes back: the last state and its step.

        None if a stop request came before the first step.
        """
        train, display = self.setup.config.train, self.display
        self._begins = step + 1
        traced = train.profile if is_process_0() else None
        trace = StepTrace(traced, self.run_dir.path / "profile", display.say)
        previous: Dispatched | None = None
        # an implicit copy would slow down every step: feeding and fetching are explicit
        unasked = jax.transfer_guard("disallow")
        with batches_from(self.setup.source, step) as batches, closing(trace), unasked:
            self.startup.end("setup")
            # while the thread behind `batches` reads
            compile_missing(self.setup, step, display, self.startup, self.phases)
            self.stop.defers = True
            if self.stop.settle():
                return None
            display.start(step, train.max_steps, self.setup.ramp.rows_before)
            trace.begin(step, train.max_steps)
            calls = by_call(batches, train, self.setup.ramp, step)
            # the first step is watched too: devices may connect only in it
            with self.phases.during(Phase.TRAINING):
                for call, wait in with_waits(read_ahead(calls, self.setup.feed.training)):
                    self.throughput.wait(wait)
                    if is_idle(previous):
                        self.phases.count_as(Phase.WAITING, wait)
                    with trace.annotate(step + 1):
                        state, metrics = self.setup.train_steps(state, call)
                    step += call.steps
                    dispatched = Dispatched(step, call.steps, metrics)
                    previous, dispatched = self.throughput.seen(previous, dispatched)
                    if previous is not None:
                        self._write(self._rows(previous), shows=True)
                    previous = dispatched
                    if self._goes_back():
                        break
                    self.stop.agree(self.saving.clock.wish)
                    is_late = self.saving.clock.agreed(self.stop.wished)
                    self.saving.poll()
                    self.trackers.look()
                    if trace.after(step, metrics):  # it waited for the call, and then for a disk
                        previous = previous._replace(interval=UNMEASURED)
                        self.throughput.begin()
                    is_owed = self.saving.is_owed or is_late
                    now = due(train, step, bool(self.stop), is_owed)
                    if now:
                        with jax.transfer_guard("allow"):
                            stopping = self._do_what_is_due(now, state, self._rows(previous))
                        previous = None
                        if step == train.max_steps or stopping:
                            break
        return state, step

    def _rows(self, call: Dispatched) -> list[Row]:
        """Wait for a call; its steps as rows of metrics.jsonl."""
        rows = rows_of_call(call.step, call.steps, jax.device_get(call.metrics))
        interval = call.interval or self.throughput.end()
        self.phases.heartbeat()
        self.startup.finish(self.display.say)
        shared = self.throughput.rates(interval, sum(row["tokens"] for row in rows), call.steps)
        for row in rows:
            self._check(row, row.pop("in_a_row"))
            row |= shared
            self.setup.safeguards.watch.see(row)
        return rows

    def _check(self, row: Row, in_a_row: int) -> None:
        """Report a skipped step; raise `UserError` after too many that were not finite in a row."""
        self._is_skipping = in_a_row > 0
        if row["skipped"]:
            self.display.say(said_of(row, self.setup.config.train.skip_zscore))
        if in_a_row >= GIVE_UP_AFTER:
            with jax.transfer_guard("allow"):
                self.saving.give_up(row["step"], in_a_row, self.run_dir.path)

    def _goes_back(self) -> bool:
        """Whether the run leaves these steps for an earlier checkpoint, which is then decided."""
        if (rise := self.setup.safeguards.watch.found) is None:
            return False
        with jax.transfer_guard("allow"):
            self.saving.wait()
            checkpointer, say = self.checkpointer, self.display.say
            return decide(rise, self.setup, checkpointer, self.run_dir, say)

    def _write(self, rows: list[Row], shows: bool) -> None:
        if rows[0]["step"] == self._begins:  # a start that trains nothing leaves the run as it is
            self.showing.forget_after(rows[0]["step"] - 1)
            if is_process_0():
                self.run_dir.begin(self.setup.recorded, self.setup.tokenizer, self.setup.data.keep)
        for row in rows:
            self.saving.beside_saves(partial(self.log.append, row))
        self.books.reached(rows[-1]["step"])
        if shows:
            self.display.update(self.log.rows[-len(rows) :])

    def _do_what_is_due(self, now: set[str], state: TrainState, rows: list[Row]) -> bool:
        """Write the rows and do what is due; returns whether the run ends here."""
        rows[-1] |= self.setup.data.progress(rows[-1]["step"]) | self.books.row()
        self._write(rows, shows=False)
        if self._goes_back():
            return True
        stopping = self.boundary.work(now, state, len(rows), self._is_skipping)
        ramp, max_steps = self.setup.ramp, self.setup.config.train.max_steps
        self.books.tell(self.display.say, ramp.rows_before, max_steps)
        self.throughput.begin()
        return stopping

    def _end(self, state: TrainState, step: int) -> int:
        """Wait for the last save and say how to continue."""
        self.display.stop()
        self.saving.complete(state, self.stop)
        max_steps = self.setup.config.train.max_steps
        early = self.boundary.ended_early(step)
        with self.phases.during(Phase.SHOWING):
            is_plotted = self.showing.plot(self.log.rows)
        curves = f"curves in {self.run_dir.curves}; " if is_plotted else ""
        if step < max_steps and early is None:
            self.books.tell_all(self.display.say)
            name = self.stop.signal.name if self.stop.signal else "a stop request"
            self.display.say(
                f"stopped by {name} after step {step}. Everything is saved in "
                f"{self.run_dir.path}: rerun the same command to continue"
            )
            return self.stop.exit_code
        if not self.finish(step):
            return self.stop.exit_code
        if early is not None:
            self.display.say(f"ended before step {max_steps} by {early}")
        skipped = f"{words}; " if (words := count_of_skipped(self.log.rows)) else ""
        self.display.say(
            f"done: {step} steps; {skipped}{curves}now try\n  "
            f"python -m gptjax.generate --run {shlex.quote(str(self.run_dir.path))} "
            f'{self.setup.task.try_it} "..."'
        )
        return 0

    def finish(self, steps: int) -> bool:
        """Write results.json, with the best checkpoint measured on the test split if there is one.

        False if a stop request cut that short.
        """
        setup, run_dir, display = self.setup, self.run_dir, self.display
        loss, measure = self.checkpointer.ranking.loss, setup.task.results
        if measure is not None:
            data, say = setup.data, display.say
            finish(measure, run_dir, steps, data, loss, say, self.phases, self.stop)
            if self.stop and not has_results(run_dir, steps):
                self.books.tell_all(display.say)
                display.say(f"stopped before {RESULTS}: rerun the same command to write it")
                return False
        if self.books.is_kept:
            account = self.books.row()
            if self.log.rows:
                self.log.amend(account)
            add_account(run_dir, steps, self.checkpointer.best_step(), loss, account)
            self.books.tell_all(display.say)
            self.showing.report(self.log.rows)
        return True

"""A run from start to end: restore, train, validate, sample, save.

The device never waits for the host: a call takes one step or several, and its numbers are fetched
only after the next call has been dispatched. If a validation, a sample or a checkpoint is due, the
loop first finishes the call and writes its rows, so that no checkpoint is ahead of metrics.jsonl.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import jax

from gptjax.cluster.agreement import (
    broadcast_from_0,
    exit_if_distributed,
    is_process_0,
    max_over_processes,
    on_process_0,
)
from gptjax.cluster.compiler import watching_cache
from gptjax.cluster.devices import peak_tokens_per_second
from gptjax.cluster.links import check_links
from gptjax.cluster.stop import StopRequest
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config
from gptjax.data.loader import batches_from, read_ahead
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.metrics import MetricsLog, Row
from gptjax.runs.trace import Startup, StepTrace
from gptjax.training.feed import by_call, due, rows_of_call
from gptjax.training.finishing import RESULTS, finish, has_results
from gptjax.training.measuring import Measuring
from gptjax.training.pace import UNMEASURED, Dispatched, Throughput, with_waits
from gptjax.training.patience import early_end
from gptjax.training.saving import Saving
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.start import agree_on_program, how_to_go_on, open_run, restore_or_start
from gptjax.training.state import TrainState
from gptjax.training.validating import Validating

NOT_OPENED = "the run's directory was not opened"
GIVE_UP_AFTER = 20  # steps in a row whose gradients are not finite


def fit(
    config: Config,
    run_path: Path,
    fresh: bool = False,
    startup: Startup | None = None,
    notes: Sequence[str] = (),
) -> int:
    """Train until `max_steps`, resuming the run in `run_path`; returns the exit code.

    `fresh` moves an older run aside first; `startup` holds the phases of the start so far; `notes`
    are shown. The exit code is 0 for a complete run, and 128 + signal number for one that a signal
    ended, after a save. All processes of a run call this; process 0 writes, prints and decides.
    """
    run_dir, startup = RunDir(run_path), startup or Startup(time.perf_counter())
    with ExitStack() as stack:
        watchdog = stack.enter_context(closing(Watchdog(config.train.stall_seconds)))
        with watchdog.watching(NOT_OPENED):
            on_process_0(run_dir.check)
        stop = stack.enter_context(
            StopRequest(max_over_processes if jax.process_count() > 1 else None)
        )
        setup = Setup(config, None if fresh else run_dir)
        with watchdog.watching(NOT_OPENED):
            changes = open_run(setup, run_dir, fresh, stack)
        links = check_links(config)
        agree_on_program(setup)
        log_path = run_dir.log if is_process_0() else None
        display = stack.enter_context(closing(Display(log_path, setup.task.unit)))
        keep_latest = setup.config.train.keep_latest
        checkpointer = stack.enter_context(closing(Checkpointer(run_dir.checkpoints, keep_latest)))
        stack.push(exit_if_distributed)  # runs before the checkpointer can wait for the others
        stack.callback(display.stop)
        for line in [*changes, *links, *notes]:
            display.say(line)
        startup.end("setup")
        measuring = Measuring(setup, stop, watchdog.heartbeat, display)
        measuring.rehearse()
        state, step = restore_or_start(setup, checkpointer, run_dir, display, watchdog)
        startup.end("initialisation" if step == 0 else "restoring")
        metrics_path = run_dir.metrics if is_process_0() else None
        log = stack.enter_context(closing(MetricsLog(metrics_path, step)))
        loop = _Loop(setup, run_dir, checkpointer, log, display, stop, startup, watchdog, measuring)
        loop.do_what_was_missed(state, step)
        early = loop.ended_early(step)
        if early is not None or step >= setup.config.train.max_steps:
            if not loop.finish(step):
                return stop.exit_code
            how = how_to_go_on(run_dir.read_config(), step, early, setup.data.epochs(step))
            display.say(f"{run_dir.path} is complete at step {step}: {how}")
            return 0
        setup.announce(step, display)
        if stop:
            display.say("stopped before the first step")
            return stop.exit_code
        return loop.train(state, step)


class _Loop:
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
        watchdog: Watchdog,
        measuring: Measuring,
    ):
        self.setup, self.run_dir, self.checkpointer = setup, run_dir, checkpointer
        self.log, self.display, self.stop, self.startup = log, display, stop, startup
        self.watchdog, self.measuring = watchdog, measuring
        config, unit = setup.config, setup.task.unit
        self.showing = Showing(config, setup.tokenizer, run_dir, display, unit)
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        peak = peak_tokens_per_second(config, kind, count) if unit == "token" else None
        self.throughput = Throughput(peak)
        self.saving = Saving(setup, checkpointer, watchdog, display)
        self.validating = Validating(setup, stop, watchdog.heartbeat)

    def train(self, state: TrainState, step: int) -> int:
        """Step by step to the end, or to a stop request; returns the exit code."""
        train, display = self.setup.config.train, self.display
        self._begins = step + 1
        traced = train.profile if is_process_0() else None
        trace = StepTrace(traced, self.run_dir.path / "profile", display.say)
        previous: Dispatched | None = None
        # an implicit copy would slow down every step: feeding and fetching are explicit
        unasked = jax.transfer_guard("disallow")
        with batches_from(self.setup.source, step) as batches, closing(trace), unasked:
            display.say("compiling the train step ...")
            self.startup.end("setup")
            with watching_cache() as cache, jax.transfer_guard("allow"):
                self.setup.compile_steps(step)  # while the thread behind `batches` reads
            self.startup.end("compilation", f"cached: {cache}")
            self.watchdog.heartbeat()  # the first step is watched: devices may connect only in it
            display.start(step, train.max_steps, self.setup.ramp.rows_before)
            trace.begin(step, train.max_steps)
            calls = by_call(batches, train, self.setup.ramp, step)
            for call, wait in with_waits(read_ahead(calls, self.setup.feed.training)):
                self.throughput.wait(wait)
                with trace.annotate(step + 1):
                    state, metrics = self.setup.train_steps(state, call)
                step += call.steps
                dispatched = Dispatched(step, call.steps, metrics)
                previous, dispatched = self.throughput.seen(previous, dispatched)
                if previous is not None:
                    self._write(self._rows(previous))
                previous = dispatched
                self.stop.agree()
                self.saving.poll()
                if trace.after(step, metrics):  # it waited for the call, and then for a disk
                    previous = previous._replace(interval=UNMEASURED)
                    self.throughput.begin()
                now = due(train, step, bool(self.stop), self.saving.is_owed)
                if now:
                    with jax.transfer_guard("allow"):
                        stopping = self._do_what_is_due(now, state, self._rows(previous))
                    previous = None
                    if step == train.max_steps or stopping:
                        break
        return self._end(step)

    def _rows(self, call: Dispatched) -> list[Row]:
        """Wait for a call; its steps as rows of metrics.jsonl."""
        rows = rows_of_call(call.step, call.steps, jax.device_get(call.metrics))
        interval = call.interval or self.throughput.end()
        self.watchdog.heartbeat()
        self.startup.finish(self.display.say)
        shared = self.throughput.rates(interval, sum(row["tokens"] for row in rows), call.steps)
        for row in rows:
            self._check(row["step"], row.pop("skipped"))
            row |= shared
        return rows

    def _check(self, step: int, skipped: int) -> None:
        """Report a skipped step; raise `UserError` after too many in a row."""
        self._is_skipping = skipped > 0
        if skipped:
            self.display.say(f"step {step} was skipped: its gradients are not finite")
        if skipped >= GIVE_UP_AFTER:
            with jax.transfer_guard("allow"):
                self.saving.give_up(step, skipped)

    def _write(self, rows: list[Row]) -> None:
        if rows[0]["step"] == self._begins:  # a start that trains nothing leaves the run as it is
            self.showing.forget_after(rows[0]["step"] - 1)
            if is_process_0():
                self.run_dir.begin(self.setup.recorded, self.setup.tokenizer, self.setup.data.keep)
        for row in rows:
            self.log.append(row)
        self.display.update(self.log.rows[-len(rows) :])

    def _do_what_is_due(self, now: set[str], state: TrainState, rows: list[Row]) -> bool:
        """Validate, measure, write the rows, save, sample and plot, as far as each is due.

        Returns whether a stop request came or patience ended; then the run is saved, due or not.
        Samples and plots come after the save, so that nothing is lost if they fail.
        """
        row, max_steps = rows[-1], self.setup.config.train.max_steps
        step, is_best = row["step"], False
        validation = self.validating.validate(state) if "validate" in now else None
        if validation is not None:
            is_best = bool(broadcast_from_0(self.saving.is_best(validation)))
            row |= self.validating.values(validation)
        if "measure" in now and not self.stop:
            row |= self.measuring.measure(step, self.setup.evaluated_params(state))
        row |= self.setup.data.progress(step)
        self._write(rows)
        self._early = None if validation is None else self.ended_early(step)
        stopping = bool(self.stop) or self._early is not None  # a signal may come at any moment
        if "save" in now or stopping or is_best:
            self.log.sync()
            if self._is_skipping and not (stopping or is_best or step == max_steps):
                self.saving.put_off(step)
            else:
                self.saving.save(state, validation, keeps_all=self._is_skipping)
        if "sample" in now:
            params = self.setup.evaluated_params(state)
            heartbeat, before_leaving = self.watchdog.heartbeat, self.saving.wait
            self.showing.sample(step, params, self.stop, heartbeat, before_leaving)
        if "validate" in now and step < max_steps:
            self.showing.plot(self.log.rows)  # after the last step, `_end` plots
        self.throughput.begin()
        return stopping

    def do_what_was_missed(self, state: TrainState, step: int) -> None:
        """Validate and measure as due at the restored step, if a stop request cut that short."""
        now = due(self.setup.config.train, step, False, False) if step else set()
        last, found = self.log.rows[-1] if self.log.rows else {}, {}
        misses = "validate" in now and bool(last) and "val_loss" not in last
        if broadcast_from_0(misses) and (validation := self.validating.validate(state)):
            found = {**self.validating.values(validation), **self.setup.data.progress(step)}
        misses = "measure" in now and bool(last) and not self.measuring.is_in(last)
        if broadcast_from_0(misses) and not self.stop:
            found |= self.measuring.measure(step, self.setup.evaluated_params(state))
        if found and is_process_0():
            self.log.amend(found)
        self.watchdog.pause()

    def _end(self, step: int) -> int:
        """Wait for the last save and say how to continue."""
        self.display.stop()
        self.saving.wait()
        self.watchdog.pause()
        max_steps, early = self.setup.config.train.max_steps, self._early
        curves = f"curves in {self.run_dir.curves}; " if self.showing.plot(self.log.rows) else ""
        if step < max_steps and early is None:
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
        self.display.say(
            f"done: {step} steps; {curves}now try\n  "
            f"python -m gptjax.generate --run {shlex.quote(str(self.run_dir.path))} "
            f'{self.setup.task.try_it} "..."'
        )
        return 0

    def ended_early(self, step: int) -> str | None:
        """Why the run has ended with `step`, before its last one, by the rows of process 0."""
        train = self.setup.config.train
        words = early_end(self.log.rows, train) if step < train.max_steps else None
        return (words or "patience") if broadcast_from_0(words is not None) else None

    def finish(self, steps: int) -> bool:
        """Measure the best checkpoint on the test split; False if a stop request cut that short."""
        setup, run_dir, display = self.setup, self.run_dir, self.display
        if (measure := setup.task.results) is None:
            return True
        loss = self.checkpointer.ranking.loss
        finish(measure, run_dir, steps, setup.data, loss, display.say, self.watchdog, self.stop)
        if self.stop and not has_results(run_dir, steps):
            display.say(f"stopped before {RESULTS}: rerun the same command to write it")
            return False
        return True

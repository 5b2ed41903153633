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

from gptjax.base.errors import UserError
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
from gptjax.conversion.opening import load_run
from gptjax.data.loader import batches_from, read_ahead
from gptjax.evaluation.perplexity import Validation, evaluate_parts
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.metrics import MetricsLog, Row
from gptjax.runs.trace import Startup, StepTrace
from gptjax.training.feed import by_call, due, rows_of_call
from gptjax.training.finishing import RESULTS, Finished, write_results
from gptjax.training.measuring import Measuring
from gptjax.training.pace import UNMEASURED, Dispatched, Throughput, with_waits
from gptjax.training.saving import Saving
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.start import agree_on_program, how_to_go_on, open_run, restore_or_start
from gptjax.training.state import TrainState

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
        display = stack.enter_context(closing(Display(run_dir.log if is_process_0() else None)))
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
        if step >= setup.config.train.max_steps:
            loop.finish()
            if stop:
                display.say(f"stopped before {RESULTS}: rerun the same command to write it")
                return stop.exit_code
            how = how_to_go_on(run_dir.read_config(), step)
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
        self.showing = Showing(setup.config, setup.tokenizer, run_dir, display)
        kind = jax.devices()[0].device_kind
        peak = peak_tokens_per_second(setup.config, kind, jax.device_count())
        self.throughput = Throughput(peak)
        self.saving = Saving(setup, checkpointer, watchdog, display)

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
        if skipped < GIVE_UP_AFTER:
            return
        with jax.transfer_guard("allow"):
            what_to_do = self.saving.go_back(step - skipped)  # the last accepted step
        raise UserError(
            f"{skipped} steps in a row had gradients that are not finite, the last at step {step}. "
            f"{what_to_do} a lower --optim.peak-lr"
        )

    def _write(self, rows: list[Row]) -> None:
        if rows[0]["step"] == self._begins:  # a start that trains nothing leaves the run as it is
            self.showing.forget_after(rows[0]["step"] - 1)
            if is_process_0():
                self.run_dir.begin(self.setup.config, self.setup.tokenizer)
        for row in rows:
            self.log.append(row)
        self.display.update(self.log.rows[-len(rows) :])

    def _do_what_is_due(self, now: set[str], state: TrainState, rows: list[Row]) -> bool:
        """Validate, measure, write the rows, save, sample and plot, as far as each is due.

        Returns whether a stop request came; then the run is saved, due or not. Samples and plots
        come after the save, so that nothing is lost if they fail.
        """
        row, max_steps = rows[-1], self.setup.config.train.max_steps
        step, is_best = row["step"], False
        validation = self._validate(state) if "validate" in now else None
        if validation is not None:
            is_best = validation.loss < broadcast_from_0(self.saving.lowest_loss())
            row |= self._validation_values(validation)
        if "measure" in now and not self.stop:
            row |= self.measuring.measure(step, self.setup.evaluated_params(state))
        row |= self.setup.data.progress(step)
        self._write(rows)
        stopping = bool(self.stop)  # read once: a signal may come at any moment
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
        if broadcast_from_0(misses) and (validation := self._validate(state)):
            found = {**self._validation_values(validation), **self.setup.data.progress(step)}
        misses = "measure" in now and bool(last) and not self.measuring.is_in(last)
        if broadcast_from_0(misses) and not self.stop:
            found |= self.measuring.measure(step, self.setup.evaluated_params(state))
        if found and is_process_0():
            self.log.amend(found)
        self.watchdog.pause()

    def _validate(self, state: TrainState) -> Validation | None:
        """The validation loss; None if a stop request comes meanwhile."""

        def until_stopped(batches):
            for batch in batches:
                yield batch
                self.watchdog.heartbeat()
                self.stop.agree()
                if self.stop:
                    return

        step, params = self.setup.program.eval_step, self.setup.evaluated_params(state)
        parts = [
            p._replace(batches=until_stopped(p.batches)) for p in self.setup.validation_parts()
        ]
        result = evaluate_parts(lambda batch: step(params, batch), parts)
        return None if self.stop else result

    def _validation_values(self, validation: Validation) -> Row:
        """A validation as metrics.jsonl records it."""
        return {
            "val_loss": validation.loss,
            "val_stderr": validation.stderr,
            "val_bits_per_byte": validation.bits_per_byte,
            **{f"val_loss/{name}": loss for name, loss in validation.by_source},
            **{f"val_{k}": v for k, v in self.setup.task.figures(validation.sums).items()},
        }

    def _end(self, step: int) -> int:
        """Wait for the last save and say how to continue."""
        self.display.stop()
        self.saving.wait()
        self.watchdog.pause()
        curves = f"curves in {self.run_dir.curves}; " if self.showing.plot(self.log.rows) else ""
        if step < self.setup.config.train.max_steps:
            name = self.stop.signal.name if self.stop.signal else "a stop request"
            self.display.say(
                f"stopped by {name} after step {step}. Everything is saved in "
                f"{self.run_dir.path}: rerun the same command to continue"
            )
            return self.stop.exit_code
        self.finish()
        if self.stop:
            self.display.say(f"stopped before {RESULTS}: rerun the same command to write it")
            return self.stop.exit_code
        self.display.say(
            f"done: {step} steps; {curves}now try\n  "
            f'python -m gptjax.generate --run {shlex.quote(str(self.run_dir.path))} --prompt "..."'
        )
        return 0

    def finish(self) -> None:
        """Measure the best checkpoint on the test split, unless that is done already."""
        measure, path = self.setup.task.results, self.run_dir.path
        if measure is None or not is_process_0() or (path / RESULTS).exists():
            return
        run = load_run(path)
        loss = self.checkpointer.ranking.loss(run.step)
        say, heartbeat = self.display.say, self.watchdog.heartbeat
        finished = Finished(run, loss, self.setup.data, path, say, heartbeat, self.stop)
        write_results(measure, finished)
        self.watchdog.pause()

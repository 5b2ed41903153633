"""A run from start to end: lock its directory, restore or start, train, and measure the result."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path

import jax

from gptjax.cluster.agreement import (
    alone_on_0,
    exit_if_distributed,
    is_process_0,
    max_over_processes,
    on_process_0,
)
from gptjax.cluster.links import check_links, connect
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config
from gptjax.runs.bookkeeping import Bookkeeper
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.metrics import MetricsLog
from gptjax.runs.mirror import mirror_of
from gptjax.runs.trace import Startup
from gptjax.runs.trackers import Trackers, require_installed
from gptjax.training.loop import Loop
from gptjax.training.measuring import Measuring
from gptjax.training.preflight import Preflight
from gptjax.training.setup import Setup
from gptjax.training.start import agree_on_program, how_to_go_on, open_run, restore_or_start


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
        stall_seconds, several = config.train.stall_seconds, jax.process_count() > 1
        watchdog = stack.enter_context(closing(Watchdog(stall_seconds, jax.process_index())))
        phases = Phases(watchdog, startup.began)
        stack.enter_context(phases.during(Phase.START))  # what is in no other phase hangs too
        if several:
            connect()  # else all that the processes agree on would wait for ever
        notes_0 = on_process_0(partial(_looked_at, run_dir, config)) or []
        largest = max_over_processes if several else None
        stop = stack.enter_context(StopRequest(largest, defers=several))
        mirror = mirror_of(config.train, run_dir)
        if mirror is not None:
            notes_0 += alone_on_0(phases, Phase.RESTORING, partial(mirror.open, fresh)) or []
        setup = Setup(config, None if fresh else run_dir)
        changes = open_run(setup, run_dir, fresh, stack)
        accounts = run_dir.accounts if is_process_0() else None
        books = stack.enter_context(closing(Bookkeeper(accounts, phases, config.train.price)))
        links = check_links(config)
        with phases.during(Phase.COMPILING):
            agree_on_program(setup)
        log_path = run_dir.log if is_process_0() else None
        display = stack.enter_context(closing(Display(log_path, setup.task.unit)))
        no_copying = nullcontext(lambda: None)
        copied = stack.enter_context(mirror.copying(display.say, phases) if mirror else no_copying)
        kept = setup.config.train.keep_latest, setup.config.train.keep_every_steps
        checkpointer = stack.enter_context(closing(Checkpointer(run_dir.checkpoints, *kept)))
        stack.push(exit_if_distributed)  # runs before the checkpointer can wait for the others
        stack.push(books.failed)
        stack.push(display.failed)
        stack.push(stop.leaving)  # before all that asks for the error
        stack.callback(display.stop)
        for line in [*notes_0, *changes, *books.notes, *links, *notes]:
            display.say(line)
        startup.end("setup")
        measuring = Measuring(setup, stop, phases.heartbeat, display)
        measuring.rehearse()
        checks = setup, run_dir, checkpointer, measuring, display, stop, phases, startup
        if not Preflight(*checks).passed():
            return books.end(stop.exit_code)
        state, step = restore_or_start(setup, checkpointer, run_dir, display, phases)
        startup.end("initialisation" if step == 0 else "restoring")
        metrics_path = run_dir.metrics if is_process_0() else None
        log = stack.enter_context(closing(MetricsLog(metrics_path, step)))
        if log.note is not None:
            display.say(log.note)
        names = config.train.track if is_process_0() else ()
        trackers = Trackers(names, run_path, log, checkpointer, display.say)
        stack.enter_context(closing(trackers))
        loop = Loop(
            setup,
            run_dir,
            checkpointer,
            log,
            display,
            stop,
            startup,
            phases,
            books,
            measuring,
            trackers,
        )
        loop.boundary.do_what_was_missed(state, step)
        early = loop.boundary.ended_early(step)
        if early is not None or step >= setup.config.train.max_steps:
            if not loop.finish(step):
                return books.end(stop.exit_code)
            how = how_to_go_on(run_dir.read_config(), step, early, setup.data.epochs(step))
            display.say(f"{run_dir.path} is complete at step {step}: {how}")
            copied()
            return trackers.end(books.end(0))
        books.begin(step, log.rows[-1] if log.rows else {})
        setup.announce(step, display)
        code = loop.train(state, step)
        copied()  # before the account ends
        return trackers.end(books.end(code))


def _looked_at(run_dir: RunDir, config: Config) -> list[str]:
    """Notes on a run's directory; `UserError` if it is none, or if a tracker is not installed."""
    run_dir.check()
    require_installed(config.train.track)
    return run_dir.recover_config()

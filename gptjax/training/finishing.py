"""The end of a run as results.json: its account, and a fine-tuning's best checkpoint, measured.

A fine-tuning is measured on the test split by process 0 alone, on one of its devices, while the
others wait for it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.files import write_atomically
from gptjax.cluster.agreement import alone_on_0
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.generation.loaded import LoadedRun
from gptjax.runs.directory import RESULTS, RunDir

STEPS = "trained_steps"  # in results.json: the length of the run, which may have grown since


class Finished(NamedTuple):
    """A run that has done all of its steps."""

    run: LoadedRun
    """Its best checkpoint."""
    val_loss: float | None
    """The validation loss of that checkpoint."""
    data: Any
    """The data of its task."""
    directory: Path
    """Where the run is."""
    say: Callable[[str], None]
    heartbeat: Callable[[], None]
    """To be called whenever something is finished, so that the watchdog waits."""
    stop: StopRequest
    """True as soon as a signal came: then there are no results yet."""


Measure = Callable[[Finished], dict[str, Any] | None]
"""Measures a finished run; gives None if a stop request cut that short."""


def finish(
    measure: Measure,
    run_dir: RunDir,
    steps: int,
    data: Any,
    loss_of: Callable[[int], float | None],
    say: Callable[[str], None],
    phases: Phases,
    stop: StopRequest,
) -> None:
    """Write what `measure` finds, unless it was written after the same number of steps.

    `loss_of` is the validation loss of a step. All processes call this together.
    """

    def measure_best() -> None:
        if has_results(run_dir, steps):
            return
        from gptjax.conversion.opening import load_run  # a program is compiled without Orbax

        run = load_run(run_dir.path, alone=True)
        loss, beat = loss_of(run.step), phases.heartbeat
        write_results(measure, Finished(run, loss, data, run_dir.path, say, beat, stop), steps)

    alone_on_0(phases, Phase.ENDING, measure_best)


def has_results(run_dir: RunDir, steps: int) -> bool:
    """Whether a run of so many steps has its results."""
    return run_dir.read_results().get(STEPS) == steps


def add_account(
    run_dir: RunDir,
    steps: int,
    best: int | None,
    loss_of: Callable[[int], float | None],
    account: dict[str, Any],
) -> None:
    """Add the account of a run of so many steps to its results, which begin here if need be.

    They are about the step `best`, or the last one if none was measured; `loss_of` as in `finish`.
    """
    step = steps if best is None else best
    new = {"step": step, STEPS: steps, "val_loss": loss_of(step)}
    known = run_dir.read_results()
    _write(run_dir.path, {**(known if known.get(STEPS) == steps else new), **account})


def _write(directory: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, indent=2) + "\n"
    write_atomically(directory / RESULTS, text.encode())


def write_results(measure: Measure, finished: Finished, steps: int) -> dict[str, Any] | None:
    """Write what `measure` finds about a run of so many steps, and return it."""
    if (found := measure(finished)) is None:
        return None
    results = {"step": finished.run.step, STEPS: steps, **found}
    _write(finished.directory, results)
    return results

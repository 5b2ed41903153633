"""The end of a fine-tuning: its best checkpoint, measured on the test split, as results.json.

Process 0 measures alone, on one of its devices, while the others wait for it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.files import write_atomically
from gptjax.cluster.agreement import on_process_0
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.generation.loaded import LoadedRun
from gptjax.runs.directory import RunDir

RESULTS = "results.json"
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

        with phases.during(Phase.ENDING):
            run = load_run(run_dir.path, alone=True)
            loss, beat = loss_of(run.step), phases.heartbeat
            finished = Finished(run, loss, data, run_dir.path, say, beat, stop)
            write_results(measure, finished, steps)

    with phases.waiting_for_0():
        on_process_0(measure_best)


def has_results(run_dir: RunDir, steps: int) -> bool:
    """Whether a run of so many steps has its results."""
    return _steps_of(run_dir.path / RESULTS) == steps


def _steps_of(results: Path) -> int | None:
    """The length of the run that a results.json is about; None if there is none."""
    try:
        return json.loads(results.read_bytes())[STEPS]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_results(measure: Measure, finished: Finished, steps: int) -> dict[str, Any] | None:
    """Write what `measure` finds about a run of so many steps, and return it."""
    if (found := measure(finished)) is None:
        return None
    results = {"step": finished.run.step, STEPS: steps, **found}
    text = json.dumps(results, indent=2) + "\n"
    write_atomically(finished.directory / RESULTS, text.encode())
    return results

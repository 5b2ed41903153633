"""The end of a fine-tuning: its best checkpoint, measured on the test split, as results.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.files import write_atomically
from gptjax.cluster.stop import StopRequest
from gptjax.generation.loaded import LoadedRun

RESULTS = "results.json"


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


def write_results(measure: Measure, finished: Finished) -> dict[str, Any] | None:
    """Write what `measure` finds, and return it."""
    results = measure(finished)
    if results is None:
        return None
    text = json.dumps({"step": finished.run.step, **results}, indent=2) + "\n"
    write_atomically(finished.directory / RESULTS, text.encode())
    return results

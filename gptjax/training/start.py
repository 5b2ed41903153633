"""How a run begins: whose directory it is, and where it goes on.

With several processes, the first looks after the directory; all of them have to see it.
"""

import math
from contextlib import ExitStack

import numpy as np

from gptjax.config import Config, to_json
from gptjax.errors import UserError
from gptjax.training.agreement import by_first, require_same, require_shared
from gptjax.training.checkpoint import Checkpointer
from gptjax.training.display import Display
from gptjax.training.run_dir import RunDir
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, items_of, state_of


def open_run(setup: Setup, run_dir: RunDir, fresh: bool, stack: ExitStack) -> list[str]:
    """Hold the directory until `stack` ends, an older run moved aside if `fresh`.

    Returns what the user should know. Raises `UserError` if the directory is another process's or
    another run's, or if the processes are not at the same run.
    """
    require_same("the config", to_json(setup.config))
    require_same("the data", setup.corpus.fingerprint)
    require_same("the cut of a batch", str(setup.layout))
    require_same("the attention that works", setup.model.attention)

    def hold() -> list[str]:
        kept = run_dir.set_aside() if fresh else None
        stack.enter_context(run_dir.locked())
        said = [] if kept is None else [f"the old run is kept in {kept}"]
        return said + [
            f"changed since the last start: {difference}"
            for difference in run_dir.compare(setup.config)
        ]

    said = by_first(hold)
    require_shared(run_dir.path)
    return said or []


def restore_or_start(
    setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, display: Display
) -> tuple[TrainState, int]:
    """The newest good checkpoint, or freshly drawn parameters where there is none; updates done."""
    abstract = setup.abstract_state()
    restored = checkpointer.restore(items_of(abstract), display.say)
    if restored is None:
        return setup.initial_state(), 0  # not waited for: the update compiles meanwhile
    step, items, cursor = restored
    identity = setup.data_identity(step)
    if cursor["data"] != identity["data"]:
        raise UserError(_other_data(setup, run_dir, step, cursor["data"]))
    if cursor["grain"] != identity["grain"]:
        display.say(
            f"note: the run began with Grain {cursor['grain']}, this is {identity['grain']}: "
            "windows may come in another order from here on"
        )
    display.say(f"resuming {run_dir.path} after update {step}")
    for line in _rate_jump(run_dir.read_config(), setup.config, step):
        display.say(line)
    return setup.adapted(state_of(step, items, abstract)), step


def _rate_jump(old: Config, new: Config, step: int) -> list[str]:
    """What to say where the next step has another learning rate than the last start gave it."""
    before, now = (
        np.asarray(learning_rate_schedule(config.optim, config.train.max_steps)(step)).item()
        for config in (old, new)
    )
    if math.isclose(before, now, rel_tol=1e-3):
        return []
    return [
        f"changed since the last start: the learning rate of step {step + 1} was {before:.4g}, now "
        f"{now:.4g}"
    ]


def _other_data(setup: Setup, run_dir: RunDir, step: int, before: str) -> str:
    """What to tell a user whose data, or weights, are not those that the run has had so far."""
    now = setup.corpus.fingerprint_until(step)
    if setup.corpus.mixture is None:
        return (
            f"{run_dir.path} was trained on other data (fingerprint {before}) than "
            f"{setup.manifest.directory} ({now}): give that data's --data.path, or start over "
            "with --fresh"
        )
    return (
        f"{run_dir.path} was trained on another mixture up to update {step} (fingerprint {before}) "
        f"than this ({now}): give the sources, the weights and their changes before update {step} "
        f"as they were, which {run_dir.config} says; changes from update {step} on are free. Or "
        "start over with --fresh"
    )

"""How a run begins: whose directory it is, and where it goes on.

With several processes, the first looks after the directory; all of them have to see it.
"""

import math
from contextlib import ExitStack

import numpy as np

from gptjax.base.errors import UserError
from gptjax.cluster.agreement import on_process_0, require_same, require_shared
from gptjax.config import Config, to_json
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, items_of, state_of


def open_run(setup: Setup, run_dir: RunDir, fresh: bool, stack: ExitStack) -> list[str]:
    """Hold the directory until `stack` ends, an older run moved aside if `fresh`.

    Returns what the user should know. Raises `UserError` if the directory is another process's or
    another run's, or if the processes are not at the same run. Nothing is compiled by then.
    """
    require_same("the config", to_json(setup.config))
    require_same("the data", setup.data.fingerprint_until())

    def hold() -> list[str]:
        kept = run_dir.set_aside() if fresh else None
        stack.enter_context(run_dir.locked())
        said = [] if kept is None else [f"the old run is kept in {kept}"]
        return said + [
            f"changed since the last start: {difference}"
            for difference in run_dir.compare(setup.config)
        ]

    said = on_process_0(hold)
    require_shared(run_dir.path)
    return said or []


def agree_on_program(setup: Setup) -> None:
    """Find out what works and fits here, which may compile for minutes; the same everywhere."""
    require_same("the attention that works", setup.program.config.model.attention)
    require_same("the cut of a batch", str(setup.layout))


def restore_or_start(
    setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, display: Display
) -> tuple[TrainState, int]:
    """The newest good checkpoint, or freshly drawn parameters where there is none; updates done."""
    abstract = setup.program.abstract_state()
    restored = checkpointer.restore(items_of(abstract), display.say)
    if restored is None:
        return setup.program.initial_state(), 0  # not waited for: the update compiles meanwhile
    step, items, cursor = restored
    identity = setup.data_identity(step)
    if cursor["data"] != identity["data"]:
        problem = setup.data.other_data(step, cursor["data"])
        raise UserError(f"{run_dir.path} {problem}, or start over with --fresh")
    if cursor["grain"] != identity["grain"]:
        display.say(
            f"note: the run began with Grain {cursor['grain']}, this is {identity['grain']}: "
            "windows may come in another order from here on"
        )
    display.say(f"resuming {run_dir.path} after step {step}")
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

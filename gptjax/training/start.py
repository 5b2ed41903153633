"""How a run begins: hold its directory, agree on its program, restore its state.

With several processes, process 0 looks after the directory; all of them have to see it.
"""

import math
from contextlib import ExitStack

import numpy as np

from gptjax.base.errors import UserError
from gptjax.cluster.agreement import on_process_0, require_same, require_shared
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config, to_json
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, items_of, state_of

SAME_ATTENTION = (
    "cuDNN's attention works on some of them only: check driver and cuDNN versions, or pass "
    "--model.attention blockwise"
)


def open_run(setup: Setup, run_dir: RunDir, fresh: bool, stack: ExitStack) -> list[str]:
    """Hold the directory until `stack` ends, an older run moved aside if `fresh`.

    Returns notes for the user. Raises `UserError` if the directory belongs to another process or
    another run, or if the processes do not have the same run. Nothing has been compiled by then.
    """
    require_same("the config", to_json(setup.config))
    require_same("the data", setup.data.fingerprint_until())

    def hold() -> list[str]:
        kept = run_dir.set_aside() if fresh else None
        stack.enter_context(run_dir.locked())
        notes = [] if kept is None else [f"the old run is kept in {kept}"]
        return notes + [
            f"changed since the last start: {difference}"
            for difference in run_dir.compare(setup.config)
        ]

    notes = on_process_0(hold)
    require_shared(run_dir.path)
    return notes or []


def agree_on_program(setup: Setup) -> None:
    """Choose attention and micro-batch, the same on all processes; this may compile for minutes."""
    require_same("the attention", setup.program.config.model.attention, SAME_ATTENTION)
    require_same("the layout of a batch", str(setup.layout))


def restore_or_start(
    setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, display: Display, watchdog: Watchdog
) -> tuple[TrainState, int]:
    """Return the newest good checkpoint, or fresh parameters if there is none; and its step."""
    abstract = setup.program.abstract_state()
    with watchdog.watching("no checkpoint was restored"):
        restored = checkpointer.restore(items_of(abstract), display.say)
    if restored is None:
        return setup.program.initial_state(), 0  # not waited for: the train step compiles meanwhile
    step, items, cursor = restored
    identity = setup.data_identity(step)
    if cursor["data"] != identity["data"]:
        problem = setup.data.other_data(step, cursor["data"])
        raise UserError(f"{run_dir.path} {problem}, or start over with --fresh")
    if cursor["grain"] != identity["grain"]:
        display.say(
            f"note: the run began with Grain {cursor['grain']}, but {identity['grain']} is "
            "installed: windows may come in another order from here on"
        )
    display.say(f"resuming {run_dir.path} after step {step}")
    for line in _rate_jump(run_dir.read_config(), setup.config, step):
        display.say(line)
    return setup.adapted(state_of(step, items, abstract)), step


def _rate_jump(old: Config, new: Config, step: int) -> list[str]:
    """A note for the user if the next step has another learning rate than at the last start."""
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

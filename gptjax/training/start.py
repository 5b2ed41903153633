"""How a run begins: whose directory it is, and where it goes on.

With several processes, the first looks after the directory; all of them have to see it.
"""

from contextlib import ExitStack

from gptjax.config import to_json
from gptjax.errors import UserError
from gptjax.training.agreement import by_first, require_same
from gptjax.training.checkpoint import Checkpointer
from gptjax.training.display import Display
from gptjax.training.run_dir import RunDir
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState


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

    said = by_first(hold)
    shared = "it has to be on a file system that all nodes share"
    require_same(f"the sight of {run_dir.path}", str(run_dir.is_held()), shared)
    return said or []


def agree_on_program(setup: Setup) -> None:
    """Find out what works and fits here, which may compile for minutes; the same everywhere."""
    require_same("the attention that works", setup.program.config.model.attention)
    require_same("the cut of a batch", str(setup.layout))


def restore_or_start(
    setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, display: Display
) -> tuple[TrainState, int]:
    """The newest good checkpoint, or freshly drawn parameters where there is none; updates done."""
    restored = checkpointer.restore(setup.program.abstract_state(), display.say)
    if restored is None:
        return setup.program.initial_state(), 0  # not waited for: the update compiles meanwhile
    state, cursor = restored
    step = int(state.step)
    identity = setup.data_identity(step)
    # earlier versions kept the fingerprint of all weights, those of updates to come included
    if (before := cursor["data"]) not in (identity["data"], setup.data.fingerprint_until()):
        problem = setup.data.other_data(step, before)
        raise UserError(f"{run_dir.path} {problem}, or start over with --fresh")
    if cursor.get("grain") != identity["grain"]:
        display.say(
            f"note: the run began with Grain {cursor.get('grain')}, this is {identity['grain']}: "
            "windows may come in another order from here on"
        )
    display.say(f"resuming {run_dir.path} after update {step}")
    return setup.adapted(state), step

"""The start of a run: lock its directory, agree on its program, and one of three ways to begin.

With several processes, process 0 manages the directory, and all of them must see it.
"""

from contextlib import ExitStack

from gptjax.base.errors import UserError
from gptjax.base.files import remove_unfinished
from gptjax.cluster.agreement import on_process_0, require_same, require_shared
from gptjax.cluster.phases import Phase, Phases
from gptjax.config import Config, to_json
from gptjax.config.batches import batch_schedule
from gptjax.config.courses import schedule_end
from gptjax.config.origins import as_words
from gptjax.config.run_batches import RunBatches
from gptjax.config.validation import config_from_json
from gptjax.conversion.finding import find_model
from gptjax.conversion.pinned import chosen, pin, pinned_base
from gptjax.runs.checkpoint import Checkpointer, Restored
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.naming import BATCHES, ROWS, read_checkpoint_name
from gptjax.runs.resuming import in_columns
from gptjax.training.consequences import batch_change, course_change
from gptjax.training.rolling_back import settle
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, items_of, state_of
from gptjax.training.warm_start import base_of_adapters, warm_state

SAME_ATTENTION = (
    "its kernel works on some of them only: check driver and cuDNN versions, or pass "
    "--model.attention blockwise"
)


def open_run(setup: Setup, run_dir: RunDir, fresh: bool, stack: ExitStack) -> list[str]:
    """Lock the directory until `stack` ends; if `fresh`, move an older run aside first.

    Returns notes for the user. Raises `UserError` if the directory belongs to another process or
    another run, or if the processes do not have the same run. Nothing is compiled before that.
    """
    require_same("the config", to_json(setup.config))
    require_same("the data", setup.data.fingerprint_until())

    def hold() -> list[str]:
        refuse_itself(setup.config.train.init_from, run_dir)
        kept = run_dir.set_aside() if fresh else None
        stack.enter_context(run_dir.locked())
        remove_unfinished(run_dir.path)
        notes = [] if kept is None else [f"the old run is kept in {kept}"]
        if changes := run_dir.compare(setup.config):
            notes.append(f"changed since the last start:{in_columns(changes)}")
        return [*notes, *setup.notes()]

    notes = on_process_0(hold)
    require_shared(run_dir.path)
    return notes or []


def refuse_itself(init_from: str | None, run_dir: RunDir) -> None:
    """Raise `UserError` if a run is to start from its own directory, which it would replace."""
    if init_from is None or not run_dir.path.exists():
        return
    source = read_checkpoint_name(init_from).path
    if source.exists() and source.samefile(run_dir.path):
        raise UserError(
            f"--train.init-from {init_from} is the run's own directory: give another --run-dir for "
            "the run that starts from it"
        )


def agree_on_program(setup: Setup) -> None:
    """Choose attention and micro-batch, the same on all processes; this may compile for minutes."""
    require_same("the attention", setup.program.config.model.attention, SAME_ATTENTION)
    require_same("the layout of a batch", str(setup.layout))


def restore_or_start(
    setup: Setup, checkpointer: Checkpointer, run_dir: RunDir, display: Display, phases: Phases
) -> tuple[TrainState, int]:
    """The state to train from, and its step, by the first of these ways that is open.

    1. Resume the run in the directory from its newest good checkpoint.
    2. Start from the model that `train.init_from` names, with a new optimizer.
    3. Draw new parameters.
    """
    program = setup.program
    abstract = program.abstract_state()
    with phases.during(Phase.RESTORING):
        settle(setup, checkpointer, run_dir, display.say)
        restored = checkpointer.restore(items_of(abstract, program.trained), display.say)
    if restored is not None:
        return _resumed(setup, restored, abstract, run_dir, display)
    if (name := setup.config.train.init_from) is not None:
        with phases.during(Phase.RESTORING):
            base, notes = None, None
            if program.trained.are_adapters:
                notes = on_process_0(lambda: pin(chosen(find_model(name)), run_dir.path))
                base = str(pinned_base(run_dir.path))
            state, lines = warm_state(setup.config, program, setup.tokenizer, base)
        for line in [*lines, *(notes or [])]:
            display.say(line)
        return state, 0
    return program.initial_state(), 0  # no wait: the train step compiles meanwhile


def _resumed(
    setup: Setup, restored: Restored, abstract: TrainState, run_dir: RunDir, display: Display
) -> tuple[TrainState, int]:
    """The state of a checkpoint, once its data are those of this start."""
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
    before = _batches_before(run_dir, step, cursor)
    rows = cursor.get(ROWS, before.rows_before(step))
    rows = setup.safeguards.rows_after(step, rows, cursor)
    setup.follow(before.continued(step, rows, setup.schedule))
    setup.data.refuse_excess()
    if change := batch_change(before, setup.ramp, setup.config, step):
        display.say(f"changed since step {step}: {change}")
    base = None
    if setup.program.trained.are_adapters:
        base = base_of_adapters(setup.program, run_dir)
    state = setup.adapted(state_of(step, items, abstract, base), cursor)
    accepted = step - int(state.opt_state.total_notfinite)  # skipped steps do not count
    if change := course_change(run_dir.read_config(), setup.config, step, accepted):
        display.say(f"changed since the last start: {change}")
    return state, step


def _batches_before(run_dir: RunDir, step: int, cursor: dict) -> RunBatches:
    """The batches of the run until a restored step.

    A checkpoint of an earlier version does not say: its batches are those of its own config, which
    no later start has replaced.
    """
    if BATCHES in cursor:
        return RunBatches.from_lists(cursor[BATCHES])
    own = run_dir.checkpoints / str(step) / "config" / "metadata"
    if not own.exists():
        return RunBatches.of(batch_schedule(run_dir.read_config()))
    return RunBatches.of(batch_schedule(config_from_json(own.read_text(), str(own))))


def how_to_go_on(config: Config, step: int, early: str | None = None, epochs: float = 0.0) -> str:
    """The flags that continue a run, complete at `step`, without a jump in its learning rate.

    `early` is the reason why it has ended before its last step; `epochs` are those that it has
    read, and if they are all that it was to read, it has to be given more of them.
    """
    if early is not None:
        return (
            f"it ended by {early}.\nTo continue, rerun the command with a larger --train.patience, "
            "or None. To start over instead: --fresh"
        )
    rewarm = as_words((*config.optim.rewarm_steps, step))
    reset = "" if config.optim.decay_steps is None else " --optim.decay-steps None"
    length = "--train.max-steps"
    asked = config.train.epochs
    if asked is not None and epochs >= asked * (1 - 1e-9):
        length = "--train.epochs"
    return (
        f"to continue, rerun the command with a larger {length} and\n"
        f"  --optim.decay-steps {schedule_end(config.optim, config.train.max_steps)}"
        "  to keep its schedule, and then its final learning rate, or\n"
        f"  --optim.rewarm-steps {rewarm}{reset}  to warm up again and decay once more.\n"
        "To start over instead: --fresh"
    )

"""Which parameters of a checkpoint go out: the last ones, or their running average."""

from gptjax.base.errors import UserError
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import CheckpointName, read_checkpoint_name


def find_average(name: CheckpointName) -> tuple[CheckpointName, bool]:
    """The name with its step in place of a word, and whether the step has a running average.

    Whatever is not a run comes back as it is, for `load_run` to judge.
    """
    run_dir = RunDir(name.path)
    if not run_dir.checkpoints.is_dir():
        return name, False
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True)
    try:
        step = checkpointer.choose(name.which)
        return CheckpointName(name.path, str(step)), checkpointer.has_average(step)
    finally:
        checkpointer.close()


def choose_average(run_name: str, averaged: bool) -> tuple[CheckpointName, list[str]]:
    """The checkpoint to take out, by its step, and a note if its average stays behind.

    Raises `UserError` if the average is wanted and there is none.
    """
    name, has_average = find_average(read_checkpoint_name(run_name))
    if averaged and not has_average:
        raise UserError(
            f"{name} has no running average of its parameters: leave --averaged out, or train with "
            "--optim.ema-decay, such as 0.999"
        )
    if averaged or not has_average:
        return name, []
    return name, [
        "these are the last parameters; --averaged takes their running average, which was measured "
        "in validation and which generate, evaluate and serve use"
    ]

"""The place of a model that a command line names, or what to do where there is none.

Whatever takes a run or a Hugging Face directory asks here first, so a name means the same
everywhere. Needs no jax.
"""

from os import PathLike
from pathlib import Path
from shlex import quote

from gptjax.base.errors import UserError
from gptjax.conversion.huggingface import is_huggingface
from gptjax.conversion.peft import is_peft
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import BEST, FORM, LATEST, CheckpointName, read_checkpoint_name


def find_model(name: str | PathLike[str]) -> CheckpointName:
    """The directory and the checkpoint that a name means: of a run, or of Hugging Face's form.

    The run itself is not read. Raises `UserError` if nothing is there, for a step of a Hugging Face
    directory, which has none, and, with the command that converts it, for a model of another form.
    """
    named = read_checkpoint_name(name)
    path = named.path
    if not path.exists():
        raise UserError(
            f"there is no model in {path}: expected {FORM}, or a Hugging Face directory. Train one "
            f"first, for example with `python -m gptjax.train --config quickstart`{_of_hub(path)}"
        )
    if is_huggingface(path):
        if named.which not in (BEST, LATEST):
            raise UserError(f"{path} is a Hugging Face directory: it has no step {named.which}")
        return named
    if is_peft(path):
        raise UserError(
            f"{path} holds PEFT's adapters without their model: first convert them with `python -m "
            f"gptjax.convert --from {quote(str(path))} --base MODEL --out RUN`"
        )
    if not RunDir(path).has_checkpoint and (words := _another_form(path)):
        raise UserError(f"{path} is {words}, not a run: convert it first with `{_convert(path)}`")
    if not path.is_dir():
        raise UserError(
            f"there is no model in {path}, which is a file: expected {FORM}, or a Hugging Face "
            "directory"
        )
    return named


def _another_form(path: Path) -> str | None:
    """What a model of another program is, in words; None if it is nothing known."""
    from gptjax.conversion.kinds import FORMATS  # jax comes with it

    return " or ".join(known.words for known in FORMATS.values() if known.is_at(path)) or None


def _of_hub(path: Path) -> str:
    """Advice if a path that is not there may be the name of a model on the hub."""
    from gptjax.conversion.hub_models import is_model_name

    is_local = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if is_local or not is_model_name(str(path)):
        return ""
    return f"; or, if it is a model of the Hugging Face hub, fetch it with `{_convert(path)}`"


def _convert(path: Path) -> str:
    return f"python -m gptjax.convert --from {quote(str(path))} --out RUN"

"""The model beneath a run of adapters: its checkpoints hold no base, so the run pins one.

`base.json` in the run's directory names a checkpoint by its step, so that a base that trains on
changes nothing, and has a fingerprint of it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import sha256_of, write_atomically
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface
from gptjax.conversion.huggingface_config import CONFIG
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import BASE, RunDir
from gptjax.runs.holding import hold
from gptjax.runs.integrity import INTEGRITY
from gptjax.runs.naming import CheckpointName

_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


@dataclass(frozen=True)
class Pinned:
    """One checkpoint, or a Hugging Face directory."""

    model: str
    """Its directory, absolute."""
    relative: str
    """The same as seen from the run, so that both can move together."""
    step: int | None
    """The step of its checkpoint; None for a Hugging Face directory."""
    fingerprint: str
    """32 hexadecimal digits that change with any byte of its parameters."""

    @property
    def which(self) -> str | None:
        """The step as part of a checkpoint's name."""
        return None if self.step is None else str(self.step)


def chosen(name: CheckpointName) -> CheckpointName:
    """The name with a step in place of a word; a Hugging Face directory has no step."""
    if is_huggingface(name.path):
        return name
    checkpointer = Checkpointer(RunDir(name.path).checkpoints, read_only=True)
    try:
        return name._replace(which=str(checkpointer.choose(name.which)))
    finally:
        checkpointer.close()


def pin(name: CheckpointName, run: Path, final: Path | None = None) -> list[str]:
    """Write a `chosen` model as the base of the adapters of `run`, and have its run keep the step.

    `final` is the name that the directory `run` will have. Returns a note if the base's run may
    delete the step. Raises `UserError` if it has just done so.
    """
    step = None if is_huggingface(name.path) else name.which
    note = None if step is None else hold(name.path, int(step), final or run)
    fingerprint = fingerprint_of_model(name.path, step)
    if fingerprint is None:
        raise UserError(f"{name} was there a moment ago, and is deleted now: start again")
    pinned = Pinned(
        os.path.abspath(name.path),
        os.path.relpath(os.path.abspath(name.path), os.path.abspath(run)),
        None if step is None else int(step),
        fingerprint,
    )
    write_atomically(RunDir(run).base, (json.dumps(asdict(pinned), indent=2) + "\n").encode())
    return [] if note is None else [note]


def pinned_base(run: Path) -> CheckpointName:
    """The base that a run of adapters has pinned, verified by its fingerprint.

    Raises `UserError` if it is missing or has changed.
    """
    file = RunDir(run).base
    try:
        pinned = Pinned(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run} holds adapters, but {file} does not say for which model: copy {BASE} back from "
            "where the run was trained"
        ) from error
    path = next((p for p in (Path(pinned.model), run / pinned.relative) if p.exists()), None)
    where = pinned.model if pinned.step is None else f"{pinned.model}@{pinned.step}"
    if path is None or fingerprint_of_model(path, pinned.which) is None:
        if path is not None and (others := RunDir(path).steps()):
            raise UserError(
                f"{run} holds adapters of {where}, and {path} has no step {pinned.step} any more, "
                f"only {', '.join(map(str, others))}: it was deleted as that run trained on. Copy "
                f"checkpoints/{pinned.step} back from a backup, or train the adapters again, from "
                f"--train.init-from {path} with --fresh"
            )
        raise UserError(
            f"{run} holds adapters of {where}, which is not there: bring it back, or write its new "
            f"place into {file} as model"
        )
    if fingerprint_of_model(path, pinned.which) != pinned.fingerprint:
        raise UserError(
            f"{run} holds adapters of {where}, which has changed since they were trained: bring "
            "that model back, or train the adapters again"
        )
    if pinned.which is None:
        return find_model(path)
    return CheckpointName(path.resolve(), pinned.which)


def fingerprint_of_model(path: Path, step: str | None) -> str | None:
    """32 hexadecimal digits of a checkpoint, by its signature, or of a directory's weights.

    None if it is not there.
    """
    digest = hashlib.sha256()
    if step is None:
        files = sorted({f for pattern in _WEIGHTS for f in path.glob(pattern)})
        if not files or not (path / CONFIG).is_file():
            return None
        for file in [path / CONFIG, *files]:
            digest.update(sha256_of(file, lambda _: None).encode())
        return digest.hexdigest()[:32]
    run_dir = RunDir(path)
    signature = run_dir.checkpoints / step / INTEGRITY
    if not signature.is_file():
        return None
    digest.update(signature.read_bytes())
    if run_dir.base.is_file():  # adapters on another base: its own fingerprint is in there
        digest.update(json.loads(run_dir.base.read_text())["fingerprint"].encode())
    return digest.hexdigest()[:32]

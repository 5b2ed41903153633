"""A run's directory: config, tokenizer, checkpoints, metrics.jsonl, plots, samples.md, log.

Starting a run again in the same directory resumes it, with settings as `resuming` allows.
"""

import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.base.files import locked, write_atomically
from gptjax.config import Config, to_json
from gptjax.config.validation import config_from_json
from gptjax.runs.holding import PINNED
from gptjax.runs.naming import no_checkpoint
from gptjax.runs.resuming import Change, changes_between, refusal
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import tokenizer_from_json

LOCK = ".lock"
BASE = "base.json"
ACCOUNTS = "accounts.json"
RESULTS = "results.json"
STORE = "store.json"  # the object store of its checkpoints, if it has one
CONVERTED = "0"  # the only step of a converted run; training saves from step 1 on


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        """A copy of the data's tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def base(self) -> Path:
        """The model that adapters belong to; only runs of adapters have it."""
        return self.path / BASE

    @property
    def checkpoints(self) -> Path:
        """Orbax steps."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One row a step."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The figures of a complete run."""
        return self.path / RESULTS

    @property
    def curves(self) -> Path:
        """The plotted curves."""
        return self.path / "loss.png"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def samples(self) -> Path:
        """Texts sampled while training."""
        return self.path / "samples.md"

    @property
    def accounts(self) -> Path:
        """Where the hours of all starts went."""
        return self.path / ACCOUNTS

    @property
    def log(self) -> Path:
        """Every message."""
        return self.path / "log.txt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a step was ever saved, damaged or not."""
        return any(self.checkpoints.glob("[0-9]*"))

    @property
    def is_converted(self) -> bool:
        """Whether it holds parameters from elsewhere, at step 0, and nothing to resume."""
        return (self.checkpoints / CONVERTED).is_dir()

    def set_aside(self) -> Path | None:
        """Move an existing run aside; returns its new place, or None if there was no run.

        Raises `UserError` if the directory is not a run, or if a process trains in it.
        """
        self.check()
        if not self.path.exists():
            return None
        path = Path(os.path.abspath(self.path))  # move a link itself, not its target
        target = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        while target.exists():
            target = target.with_name(target.name + "x")
        with self.locked():
            try:
                path.rename(target)
            except OSError as error:
                raise UserError(f"cannot move {path} to {target}: {error.strerror}") from error
        return target

    def require_checkpoint(self, which: str) -> None:
        """Raise `UserError` if there is none, or not the step `which`; it may still be damaged."""
        steps = self.steps()
        if not self.has_checkpoint or (which.isdecimal() and int(which) not in steps):
            raise no_checkpoint(which, steps, self.checkpoints)

    def steps(self) -> list[int]:
        """Steps that were saved and are still there, damaged or not, oldest first."""
        names = [path.name for path in self.checkpoints.glob("[0-9]*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def check(self) -> None:
        """Raise `UserError` if the path cannot be a run's directory."""
        for file in (self.config, self.tokenizer, self.metrics, self.log):
            if file.is_dir():
                raise UserError(f"{file} is a directory; expected a file: move it away")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"{self.path} is a file; expected a run's directory: choose another --run-dir"
            )
        if not self.path.is_dir() or self.config.exists() or self.has_checkpoint:
            return
        # a run that was killed during its start leaves at most these
        own = {
            LOCK,
            BASE,
            PINNED,
            ACCOUNTS,
            STORE,
            "profile",
            *(p.name for p in (self.log, self.checkpoints, self.tokenizer)),
        }
        names = {p.name for p in self.path.iterdir() if p.suffix != ".tmp"}
        if names - own:
            raise UserError(
                f"{self.path} is not empty and not a run of gptjax (no config.json): choose "
                "another --run-dir"
            )

    def recover_config(self) -> list[str]:
        """Write a config.json that is gone anew, from the newest checkpoint that has it undamaged.

        Returns a note for the user. Raises `UserError` if no checkpoint has it.
        """
        if self.config.exists() or not self.has_checkpoint:
            return []
        from gptjax.runs.integrity import signed_content  # it loads jax

        for step in reversed(self.steps()):
            if content := signed_content(self.checkpoints / str(step), "config/metadata"):
                config = config_from_json(content.decode(), f"the config of checkpoint {step}")
                write_atomically(self.config, to_json(config).encode())
                return [f"note     {self.config} was gone: it is that of checkpoint {step} now"]
        raise UserError(
            f"{self.path} has checkpoints but no config.json, and none of them has it: choose "
            "another --run-dir"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the directory; raises `UserError` while another process holds it.

        However a process ends, the system releases its lock.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.path}: {error.strerror}") from error
        with locked(self.path / LOCK) as is_free:
            if not is_free:
                raise UserError(
                    f"another process is training in {self.path}: wait for it, stop it, or choose "
                    "another --run-dir"
                )
            yield

    def compare(self, config: Config) -> list[Change]:
        """The settings that differ from those of the last start of the run in the directory.

        Raises `UserError` if there is a checkpoint and the settings would make another run of it.
        """
        if not self.has_checkpoint:
            return []
        if self.is_converted:
            path = shlex.quote(str(self.path))
            raise UserError(
                f"{self.path} holds a converted model, which has no optimizer state to resume: "
                f"start a new run from it with --train.init-from {path} and another --run-dir"
            )
        changes = self._changes(config)
        if any(change.kind == "refused" for change in changes):
            raise refusal(self.path, changes)
        return changes

    def begin(
        self, config: Config, tokenizer: Tokenizer, keep: Callable[[Path], None] = lambda path: None
    ) -> None:
        """Write config, tokenizer and what `keep` adds, once they have been used for a step."""
        write_atomically(self.config, to_json(config).encode())
        write_atomically(self.tokenizer, tokenizer.to_json().encode())
        keep(self.path)

    def _changes(self, config: Config) -> list[Change]:
        if not self.config.exists():
            return []
        old, new = _flat(self.read_config()), _flat(config)
        if config.model.attention == "auto":  # it keeps what an earlier start has found
            del new["model.attention"]
        return changes_between(old, new)

    def read_config(self) -> Config:
        """The run's config; raises `UserError` if there is no run."""
        try:
            return config_from_json(self.config.read_text(), str(self.config))
        except PermissionError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path} is not a run of gptjax (no config.json); expected the "
                "directory of a run, such as runs/quickstart"
            ) from error

    def read_results(self) -> dict[str, Any]:
        """What results.json holds; empty if there is none that can be read."""
        try:
            found = json.loads(self.results.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def read_tokenizer(self) -> Tokenizer:
        """The run's tokenizer; raises `UserError` if it is missing or damaged."""
        try:
            return tokenizer_from_json(self.tokenizer.read_text(), str(self.tokenizer))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.tokenizer} cannot be read: copy tokenizer.json from the data directory"
            ) from error


def _flat(config: Config) -> dict[str, Any]:
    """Every field under its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= (
            {f"{name}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat

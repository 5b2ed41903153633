"""Runs inside the test's own process, in which a fault happens after a chosen step.

Their directories and comparisons are those of `killed_runs`: the run of a test is in DIRECTORY/run.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_runs import tiny_on

from gptjax.base.errors import StorageError, UserError
from gptjax.data.manifest import Manifest
from gptjax.runs.metrics import MetricsLog
from gptjax.training.fit import fit

STEPS = 24
FIELDS = {
    "train.save_every_minutes": 0.0,
    "model.unroll": 1, "model.embd_pdrop": 0.1, "optim.warmup_steps": 3, "train.micro_batch": 1,
    "train.max_steps": STEPS, "train.save_every_steps": 4, "train.eval_every_steps": 8,
    "train.eval_tokens": 512, "train.preflight": "off",
}  # fmt: skip


class Crash(BaseException):
    """The end of a process, as far as it can happen in one that goes on."""


def crash() -> None:
    raise Crash


def train_here(
    data: Manifest,
    cwd: Path,
    after: Mapping[int, Callable[[], Any]] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> int:
    """Train in `cwd`/run; each action of `after` happens once the row of its step is written."""
    append, actions = MetricsLog.append, dict(after or {})

    def appended(log: MetricsLog, row: dict) -> None:
        append(log, row)
        actions.pop(row["step"], lambda: None)()

    with pytest.MonkeyPatch.context() as patch, _compiled_once():
        patch.setattr(MetricsLog, "append", appended)
        code = fit(tiny_on(data, {**FIELDS, **(fields or {})}), cwd / "run")
    assert not actions, "the run did not get as far as the fault"
    return code


@contextmanager
def _compiled_once() -> Iterator[None]:
    """All runs have the same programs: let them find each other's."""
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "faults"
    values = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def crashed(data: Manifest, cwd: Path, step: int) -> Path:
    """A run that ended with a step and without a word; its directory's parent."""
    with pytest.raises(Crash):
        train_here(data, cwd, {step: crash})
    return cwd


def ending(*args: Any, **options: Any) -> tuple[int, str]:
    """The exit code and the last words of `train_here`, as the command would give them."""
    try:
        return train_here(*args, **options), ""
    except UserError as error:
        return error.exit_code, str(error)
    except OSError as error:
        if (known := StorageError.of(error)) is None:
            raise
        return known.exit_code, str(known)

"""What every evaluation is given: a model, the data and how much of it to use; and its record."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax

from gptjax.base.terminal import count_bar
from gptjax.evaluation.report import identity
from gptjax.evaluation.scoring import Scorer
from gptjax.generation.loaded import LoadedRun
from gptjax.model.size import parameter_count

Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement."""

    run: LoadedRun
    """The model with its config and tokenizer."""
    scorer: Scorer
    """Its scorer, with the batch, the type and the context of the measurement."""
    data: str
    """A path, or a data set of the hub."""
    limit: int | None = None
    """Use only so many items, windows or pages from the beginning."""
    stride: int | None = None
    """Tokens by which a window moves; None is the whole window."""
    text_field: str | None = None
    """Field of the records that holds the text."""
    bar: Bar = count_bar
    """Called with a total and the name of what is counted; gives what counts them."""


def conditions(setting: Setting, name: str, seconds: float) -> dict[str, Any]:
    """What another has to know to measure the same, and on what this was measured."""
    cfg, device = setting.scorer.cfg, jax.devices()[0]
    return {
        "on": name,
        "run": setting.run.origin,
        "step": setting.run.step,
        "parameters": parameter_count(cfg),
        "tokenizer": setting.run.tokenizer.name,
        "data": setting.data,
        "data_identity": identity(setting.data),
        "limit": setting.limit,
        "context": setting.scorer.context,
        "dtype": cfg.dtype,
        "batch": setting.scorer.batch_rows,
        "programs": len(setting.scorer.shapes),
        "seconds": round(seconds, 3),
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {name: version(name) for name in ("gptjax", "jax")},
    }

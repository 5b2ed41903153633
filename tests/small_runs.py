"""The tiny config on the data of a test: its setup, its first steps, what it announces."""

import dataclasses
from typing import Any

from gptjax.config import Config
from gptjax.config.presets import load_config
from gptjax.data.manifest import Manifest
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState


class Heard:
    """A display that remembers what it was told."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def table(self, *_: Any) -> None:
        pass


def tiny(data: Manifest, fields: dict[str, Any]) -> Config:
    """The tiny config on this data with other values under dotted names, never looked at."""
    quiet = {"model.unroll": 1, "train.eval_every_steps": 0, "train.save_every_steps": 0}
    return tiny_on(data, quiet | fields)


def tiny_on(data: Manifest, fields: dict[str, Any]) -> Config:
    """The tiny config on this data, not tried out before, with other values under dotted names."""
    where = {"data.path": str(data.directory), "data.source": None, "train.preflight": "off"}
    return with_values(load_config("tiny"), {**where, **fields})


def with_values(config: Config, fields: dict[str, Any]) -> Config:
    """The config with other values under dotted names."""
    for name, value in fields.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def trained(made: Setup, steps: int) -> tuple[list[float], TrainState]:
    """Losses of the first steps, and the state after them."""
    state, losses = made.program.initial_state(), []
    for step in range(steps):
        call = made.feed.training([made.source[step]])
        state, metrics = made.train_steps(state, call)
        losses.append(float(metrics["loss"]))
    return losses, state


def announced(made: Setup) -> str:
    heard = Heard()
    made.announce(0, heard)  # pyright: ignore
    return "\n".join(heard.lines)

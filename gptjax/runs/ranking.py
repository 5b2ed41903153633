"""Which checkpoint is the best, by validation measures that can be compared.

The measure is the loss, or a figure of which more is better, such as the accuracy. The loss of a
mixture is a weighted mean over its sources. New weights change its meaning, so a checkpoint is
compared only with those of the same measure under the same weights as the newest one.

A checkpoint is saved before it is validated, so its figures lie beside it, in `ranking.json`.
Checkpoints that were validated first, by earlier versions, have them in their cursor.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from gptjax.base.files import write_atomically
from gptjax.runs.integrity import signed_content

LOSS = "loss"
CURSOR_FILE = "cursor/metadata"
NOTED = "ranking.json"


class _Standing(NamedTuple):
    """What a checkpoint is ranked by: only equal measures are compared, and less is better."""

    measure: tuple[str, str]
    rank: tuple[float, ...]
    loss: float


class Ranking:
    """The validation measures of checkpoints, by step."""

    def __init__(self):
        self._known: dict[int, _Standing] = {}
        self._unknown: set[int] = set()
        self._noted: dict[int, dict[str, Any]] = {}

    @classmethod
    def of(cls, checkpoints: Path, steps: Iterable[int]) -> "Ranking":
        """The ranking of checkpoints on disk."""
        ranking, noted = cls(), _noted_in(checkpoints.parent / NOTED)
        for step in steps:
            ranking.read(step, signed_content(checkpoints / str(step), CURSOR_FILE))
            if str(step) in noted:
                ranking.note(step, noted[str(step)])
        return ranking

    def note(self, step: int, figures: dict[str, Any]) -> None:
        """Take the measure of a checkpoint from figures that are not in its cursor."""
        self._unknown.discard(step)
        self._noted[step] = figures
        self.add(step, figures)

    def write(self, run: Path) -> None:
        """Keep what was noted, in a run's directory."""
        write_atomically(run / NOTED, json.dumps(self._noted, indent=2).encode())

    def add(self, step: int, cursor: dict[str, Any]) -> None:
        """Take the measure from a checkpoint's cursor, if it has one."""
        if (standing := _standing(cursor)) is not None:
            self._known[step] = standing

    def loss(self, step: int) -> float | None:
        """The validation loss of a step; None if it was not measured."""
        return self._known[step].loss if step in self._known else None

    def would_lead(self, cursor: dict[str, Any]) -> bool:
        """Whether a checkpoint with this cursor is better than all that it can be compared with."""
        if (new := _standing(cursor)) is None:
            return False
        return all(new.rank < s.rank for s in self._known.values() if s.measure == new.measure)

    def read(self, step: int, cursor: bytes | None) -> None:
        """Take the measure from a cursor's file; None, or anything but JSON, makes it unknown."""
        try:
            self.add(step, json.loads(cursor or b""))
        except (ValueError, AttributeError):
            self._unknown.add(step)

    def unknown(self) -> list[int]:
        """Steps of unknown measure, each of which may be the best, oldest first."""
        return sorted(self._unknown)

    def keep(self, steps: Iterable[int]) -> None:
        """Forget all steps but these."""
        for step in (self._known.keys() | self._unknown | self._noted.keys()) - set(steps):
            self.drop(step)

    def drop(self, step: int) -> None:
        """Forget one step."""
        self._known.pop(step, None)
        self._unknown.discard(step)
        self._noted.pop(step, None)

    def best(self, among: Iterable[int] | None = None) -> int | None:
        """The best step by the measure of the newest, of equal ones the first; None without any."""
        steps = [s for s in (self._known if among is None else among) if s in self._known]
        measure = self._known[max(steps)].measure if steps else None
        alike = [s for s in steps if self._known[s].measure == measure]
        return min(alike, key=lambda s: (self._known[s].rank, s), default=None)


def rank_of(by: str, found: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The rank of a validation by what best_by names, less is better; None if it is not measured.

    Of equal values the one with the lower loss is better.

    >>> rank_of("accuracy", {"val_accuracy": 0.9, "val_loss": 0.3})
    (-0.9, 0.3)
    """
    loss, value = found.get("val_loss"), found.get(f"val_{by}")
    if not (_is_number(loss) and _is_number(value)):
        return None
    return (loss,) if by == LOSS else (-value, loss)


def _noted_in(path: Path) -> dict[str, dict[str, Any]]:
    """The figures in a ranking.json, by step; none if it is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
        return {step: figures for step, figures in found.items() if isinstance(figures, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def _standing(cursor: dict[str, Any]) -> _Standing | None:
    """The measure in a cursor: what its `best_by` names, or the loss."""
    by = cursor.get("best_by", LOSS)
    if (rank := rank_of(by, cursor)) is None:
        return None
    return _Standing((by, cursor.get("val_measure", "")), rank, cursor["val_loss"])


def _is_number(x: Any) -> TypeGuard[float]:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)

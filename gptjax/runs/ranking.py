"""Which checkpoint is the best, by validation losses that can be compared.

The loss of a mixture is a weighted mean over its sources. New weights change its meaning, so a loss
is compared only with losses under the same weights as the newest one.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationPolicy


class Ranking:
    """The validation losses of checkpoints, by step."""

    def __init__(self):
        self._losses: dict[int, tuple[str, float]] = {}
        self._unknown: set[int] = set()

    def add(self, step: int, cursor: dict[str, Any]) -> None:
        """Take the loss from a checkpoint's cursor, if it has one."""
        loss = cursor.get("val_loss")
        if isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss):
            self._losses[step] = cursor.get("val_measure", ""), loss

    def loss(self, step: int) -> float | None:
        """The validation loss of a step; None if it was not measured."""
        return self._losses[step][1] if step in self._losses else None

    def read(self, step: int, cursor: bytes | None) -> None:
        """Take the loss from a cursor's file; None, or anything but JSON, makes it unknown."""
        try:
            self.add(step, json.loads(cursor or b""))
        except (ValueError, AttributeError):
            self._unknown.add(step)

    def unknown(self) -> list[int]:
        """Steps of unknown loss, each of which may be the best, oldest first."""
        return sorted(self._unknown)

    def keep(self, steps: Iterable[int]) -> None:
        """Forget all steps but these."""
        for step in (self._losses.keys() | self._unknown) - set(steps):
            self.drop(step)

    def drop(self, step: int) -> None:
        """Forget one step."""
        self._losses.pop(step, None)
        self._unknown.discard(step)

    def lowest(self, measure: str) -> float:
        """The lowest loss under this measure; infinity if there is none."""
        return min(
            (loss for m, loss in self._losses.values() if m == measure), default=float("inf")
        )

    def best(self, among: Iterable[int] | None = None) -> int | None:
        """The step with the lowest loss under the measure of the newest; None if there is none."""
        steps = [s for s in (self._losses if among is None else among) if s in self._losses]
        measure = self._losses[max(steps)][0] if steps else ""
        alike = [s for s in steps if self._losses[s][0] == measure]
        return min(alike, key=lambda s: (self._losses[s][1], s), default=None)


class LatestAndBest(PreservationPolicy):
    """Keep the newest `n` steps, the step of lowest validation loss, and steps of unknown loss.

    While `keeps_all` is true, keep every step.
    """

    def __init__(self, n: int, ranking: Callable[[], Ranking]):
        self._n, self._ranking = n, ranking
        self.keeps_all = False

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Decide for each of `checkpoints`, oldest first."""
        ranking, newest = self._ranking(), len(checkpoints) - self._n
        kept = {ranking.best(), *ranking.unknown()}
        return [self.keeps_all or i >= newest or c.step in kept for i, c in enumerate(checkpoints)]

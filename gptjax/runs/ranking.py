"""Which checkpoint is the best, by validation losses that can be compared.

The loss of a mixture is a weighted mean over its sources. New weights change its meaning, so a loss
is compared only with losses under the same weights as the newest one.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationPolicy


class Ranking:
    """The validation losses of checkpoints, by their steps."""

    def __init__(self):
        self._losses: dict[int, tuple[str, float]] = {}

    def add(self, step: int, cursor: dict[str, Any]) -> None:
        """Take the loss in a checkpoint's cursor, if there is one."""
        if cursor.get("val_loss") is not None:
            self._losses[step] = cursor.get("val_measure", ""), cursor["val_loss"]

    def read(self, step: int, cursor: Path) -> None:
        """The same from a cursor's file, which may be damaged or missing."""
        try:
            self.add(step, json.loads(cursor.read_text()))
        except (OSError, ValueError, AttributeError):
            return

    def keep(self, steps: Iterable[int]) -> None:
        """Forget all steps but these."""
        kept = set(steps)
        self._losses = {step: loss for step, loss in self._losses.items() if step in kept}

    def drop(self, step: int) -> None:
        """Forget one step."""
        self._losses.pop(step, None)

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
    """Keep the newest `n` steps and the one with the lowest validation loss."""

    def __init__(self, n: int, best_step: Callable[[], int | None]):
        self._n, self._best_step = n, best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Decide for each of `checkpoints`, oldest first."""
        best, newest = self._best_step(), len(checkpoints) - self._n
        return [i >= newest or c.step == best for i, c in enumerate(checkpoints)]

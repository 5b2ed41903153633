"""Losses far above their mean: one step's is refused, and a lasting rise is noticed.

Mean and variance are exponential averages of the losses of accepted steps. At first they are plain
averages of all of them, so that the beginning does not count for more than the rest. For single
steps they are kept on the devices, where the compiled step decides. For a lasting rise every
process keeps the same numbers from the rows that it fetches, so that all decide alike. Both come
back with a checkpoint, bit for bit, from its cursor.
"""

import math
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from gptjax.cluster.mesh import put_everywhere, replicated
from gptjax.runs.metrics import Row

STEPS = 100  # accepted steps before anything is refused, and the span of the averages
IN_A_ROW = 20  # steps refused in a row, after which the loss is taken to have moved for good
WINDOW = 8  # rows whose median has to be high before a run goes back


class LossStatistics(NamedTuple):
    """Losses of accepted steps, as scalars that are the same on all devices."""

    count: Array
    """Accepted steps, int32."""
    mean: Array
    """Their average, float32."""
    variance: Array
    """Average square of the distance from it, float32."""
    refused: Array
    """Steps refused in a row, int32."""


_ZEROS: Any = (np.zeros((), kind) for kind in ("i4", "f4", "f4", "i4"))
FRESH = LossStatistics(*_ZEROS)  # on no device yet


def placed_statistics(mesh: Mesh, values: LossStatistics = FRESH) -> LossStatistics:
    """Statistics on every device of a mesh, none yet unless `values` are given."""
    return jax.tree.map(lambda x: put_everywhere(mesh, np.asarray(x)), values)


def abstract_statistics(mesh: Mesh) -> LossStatistics:
    """Their shapes, types and placement, with nothing allocated."""
    place = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), FRESH)


def is_spike(statistics: LossStatistics, loss: Array, zscore: float) -> Array:
    """Whether a loss is `zscore` standard deviations above the mean, after the first 100 steps.

    A loss that is not a number is none: its gradients are not finite.
    """
    above = loss - statistics.mean > zscore * jnp.sqrt(statistics.variance)
    return (statistics.count >= STEPS) & above & jnp.isfinite(loss)


def with_loss(
    statistics: LossStatistics, loss: Array, refused: Array, accepted: Array
) -> LossStatistics:
    """The statistics after a step; only losses of `accepted` steps enter.

    After 20 steps `refused` in a row they start over, and nothing is refused for 100 steps.
    """
    share = jnp.maximum(1 / (statistics.count + 1), 1 / STEPS)
    distance = jnp.where(accepted, loss - statistics.mean, 0.0)
    after = LossStatistics(
        count=statistics.count + 1,
        mean=statistics.mean + share * distance,
        variance=(1 - share) * (statistics.variance + share * distance * distance),
        refused=jnp.zeros_like(statistics.refused),
    )
    otherwise = statistics._replace(refused=statistics.refused + refused)
    after = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), after, otherwise)
    starts_over = after.refused >= IN_A_ROW
    return jax.tree.map(lambda x: jnp.where(starts_over, jnp.zeros_like(x), x), after)


def as_numbers(statistics: LossStatistics) -> list[float]:
    """The statistics for a cursor; JSON keeps every bit of a float32."""
    return [np.asarray(x).item() for x in jax.device_get(statistics)]


def from_numbers(numbers: list[float]) -> LossStatistics:
    """The inverse of `as_numbers`, as arrays of NumPy."""
    pairs = zip(numbers, FRESH, strict=True)
    arrays: Any = (np.asarray(number, like.dtype) for number, like in pairs)
    return LossStatistics(*arrays)


class Rise(NamedTuple):
    """A rise of the loss that lasts."""

    first: int
    """The first step whose loss is high."""
    last: int
    """The step after which it was noticed."""
    words: str
    """The losses, for people."""


class RiseWatch:
    """Watches the rows of a run for a loss that stays `zscore` standard deviations above its mean.

    That is the median of the last 8 rows, and the mean is of the rows before them. Rows of steps
    that were skipped do not count. With None it watches nothing.
    """

    def __init__(self, zscore: float | None):
        self._zscore = zscore
        self.found: Rise | None = None
        """The rise that is to be dealt with."""
        self.restore(None)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state` of an earlier moment; None begins anew."""
        state = state or {"count": 0, "mean": 0.0, "variance": 0.0, "recent": []}
        self._count, self._mean = state["count"], state["mean"]
        self._variance = state["variance"]
        self._recent: deque[tuple[int, float]] = deque((s, x) for s, x in state["recent"])
        self.found = None

    @property
    def state(self) -> dict[str, Any] | None:
        """What has to be kept, as JSON keeps it; None if nothing is watched."""
        if self._zscore is None:
            return None
        numbers = {"count": self._count, "mean": self._mean, "variance": self._variance}
        return {**numbers, "recent": [list(item) for item in self._recent]}

    @property
    def is_rising(self) -> bool:
        """Whether one of the last rows is high, so that an older checkpoint may be needed."""
        return any(loss > self._limit for _, loss in self._recent)

    def see(self, row: Row) -> None:
        """Take the next row of metrics.jsonl, before it is written."""
        if self._zscore is None or self.found or row.get("skipped"):
            return
        if not math.isfinite(row["train_loss"]):
            return
        if len(self._recent) == WINDOW:
            self._add(self._recent.popleft()[1])
        self._recent.append((row["step"], row["train_loss"]))
        high = [step for step, loss in self._recent if loss > self._limit]
        if len(high) > WINDOW // 2:
            median = sorted(loss for _, loss in self._recent)[len(self._recent) // 2]
            self.found = Rise(
                high[0],
                row["step"],
                f"the loss has stayed above {self._limit:.4f} since step {high[0]}: about "
                f"{median:.4f}, where it was {self._mean:.4f} with a standard deviation of "
                f"{math.sqrt(self._variance):.4f}",
            )

    def pass_over(self) -> None:
        """Take the rise that was found as the loss from now on: nothing can be done about it."""
        self.restore(None)

    @property
    def _limit(self) -> float:
        if self._zscore is None or self._count < STEPS:
            return math.inf
        return self._mean + self._zscore * math.sqrt(self._variance)

    def _add(self, loss: float) -> None:
        share, distance = max(1 / (self._count + 1), 1 / STEPS), loss - self._mean
        self._count += 1
        self._mean += share * distance
        self._variance = (1 - share) * (self._variance + share * distance * distance)

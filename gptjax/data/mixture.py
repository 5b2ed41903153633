"""Weighted mixtures as arithmetic: which source supplies row r, and how many it supplied before.

Rows are dealt out as evenly as whole numbers allow. Among the first r rows a source has its share
of r to within a row or two (a few rows if weights change often), and no count ever decreases. Both
answers depend on r alone: the heaviest source takes its rounded share, the next one its share of
the remainder, and so on.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gptjax.config.names import MixtureSource
from gptjax.data.examples import EndlessExamples, Example, Origin
from gptjax.data.windows import TokenWindows


class _Part(NamedTuple):
    """One source's share of the rows that earlier sources leave: `(offset + per left) / over`.

    The offset includes a half, so that integer division rounds half up.
    """

    source: int
    offset: int
    per: int
    over: int

    @classmethod
    def through(cls, source: int, left: int, share: Fraction, slope: Fraction) -> "_Part":
        """The part that has `share` of the first `left` rows, and `slope` of every further row."""
        offset = share - slope * left + Fraction(1, 2)
        over = math.lcm(offset.denominator, slope.denominator)
        return cls(source, int(offset * over), int(slope * over), over)

    def exact(self, left: int) -> Fraction:
        """The share of `left` rows, not rounded."""
        return Fraction(self.offset + self.per * left, self.over) - Fraction(1, 2)

    def count(self, left: int) -> int:
        """The same, rounded."""
        return (self.offset + self.per * left) // self.over


class Shares:
    """Whole counts for every number of rows, in proportion to weights that may change.

    A change keeps the remainders of rounding, so that no source starves however often weights
    change.
    """

    def __init__(self, weights: Sequence[Fraction]):
        # heaviest first: the smallest part then takes up each rounding
        order = sorted(range(len(weights)), key=lambda k: (-weights[k], k))
        self._stages: list[tuple[int, list[_Part]]] = []
        self._begin(0, weights, [_Part(k, 1, 0, 2) for k in order])

    def change(self, rows: int, weights: Sequence[Fraction]) -> None:
        """Change the weights after the first `rows` rows; call this in order of `rows`."""
        self._begin(rows, weights, self._stages[-1][1])

    def _begin(self, rows: int, weights: Sequence[Fraction], before: list[_Part]) -> None:
        remaining, left, parts = sum(weights), rows, []
        for part in before:
            weight = weights[part.source]
            slope = weight / remaining if remaining else Fraction(0)
            parts.append(_Part.through(part.source, left, part.exact(left), slope))
            left -= parts[-1].count(left)
            remaining -= weight
        self._stages.append((rows, parts))

    def counts(self, rows: int) -> list[int]:
        """Each source's count among the first `rows` rows; the counts add up to `rows`."""
        _, parts = next(stage for stage in reversed(self._stages) if stage[0] <= rows)
        counts = [0] * len(parts)
        for part in parts:
            counts[part.source] = part.count(rows)
            rows -= counts[part.source]
        return counts


class Mixture:
    """The plan of a run: sources, and weights that may change between steps.

    `rows_before(step)` is the number of rows in all steps before `step`.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        changes: Sequence[tuple[int, Sequence[Fraction]]],
        rows_before: Callable[[int], int],
    ):
        self.sources = tuple(sources)
        self._weights = [(0, [s.weight for s in sources]), *((s, [*w]) for s, w in changes)]
        self._shares = Shares(self._weights[0][1])
        for step, weights in self._weights[1:]:
            self._shares.change(rows_before(step), weights)

    def counts(self, rows: int) -> list[int]:
        """Each source's count among the run's first `rows` rows."""
        return self._shares.counts(rows)

    def is_read(self) -> list[bool]:
        """For each source, whether it ever has a weight."""
        return [any(of_source) for of_source in zip(*(w for _, w in self._weights), strict=True)]

    def place(self, row: int) -> tuple[int, int]:
        """The source of a row, and the number of that source's rows before it."""
        before, after = self.counts(row), self.counts(row + 1)
        source = next(k for k, count in enumerate(before) if after[k] > count)
        return source, before[source]

    def shares(self, step: int) -> list[float]:
        """The share of each source in step `step`, counted from 0; they add up to 1."""
        weights = next(w for first, w in reversed(self._weights) if first <= step)
        return [float(weight / sum(weights)) for weight in weights]


class MixedWindows:
    """The training windows of several sources, mixed by a plan."""

    def __init__(self, windows: list[TokenWindows], mixture: Mixture):
        self.windows, self.mixture = windows, mixture

    def shuffled(self, seed: int) -> "MixedOrder":
        """The endless order of a seed; raises `UserError` if a source has no window."""
        return MixedOrder(self, seed)


class MixedOrder(EndlessExamples):
    """Row r of a mixture as a function of seed and r."""

    def __init__(self, mixed: MixedWindows, seed: int):
        # one seed for each source, or two copies of a text would come in the same order
        seeds = np.random.SeedSequence(seed).generate_state(len(mixed.windows)).tolist()
        self._mixture = mixed.mixture
        self._orders = [
            windows.shuffled(seed) if is_read else None  # None: only for validation
            for windows, seed, is_read in zip(
                mixed.windows, seeds, mixed.mixture.is_read(), strict=True
            )
        ]

    def __getitem__(self, row: int) -> Example:
        order, index = self._place(row)
        return order[index]

    def origin(self, row: int) -> Origin:
        """Shard and offset of the window in this row."""
        order, index = self._place(row)
        return order.origin(index)

    def _place(self, row: int) -> tuple[EndlessExamples, int]:
        source, index = self._mixture.place(row)
        order = self._orders[source]
        assert order is not None
        return order, index

"""Weighted mixtures of sources as arithmetic: which source gives row r, and its how-manieth it is.

Rows are dealt out as evenly as whole numbers can be: of every first r rows a source has its share
of r to within a row or two (a few, where weights change often), and no count ever goes back. Both
are functions of r alone: the heaviest source takes its rounded share, the next one its share of
what that leaves, and so on.
"""

import math
import os.path
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple


class MixtureSource(NamedTuple):
    """A prepared directory, its weight, and how many epochs of it may be read at most."""

    path: str
    weight: Fraction
    max_epochs: float | None


def parse_source(text: str) -> MixtureSource:
    """Read DIR=WEIGHT or DIR=WEIGHT:EPOCHS; raises ValueError that says what is wrong.

    A weight of 0 is that of a source which only a change brings in, or which is only validated on.
    """
    path, is_there, numbers = text.rpartition("=")
    weight, is_capped, epochs = numbers.partition(":")
    if not is_there or not path:
        raise ValueError(f"{text!r} has no directory before a =")
    most = float(_positive(epochs, text)) if is_capped else None
    return MixtureSource(path, _number(weight, text), most)


def parse_change(text: str, sources: int) -> tuple[int, list[Fraction]]:
    """Read STEP=WEIGHT,WEIGHT,... with a weight for every source; raises ValueError."""
    step, _, numbers = text.partition("=")
    weights = [_number(number, text) for number in numbers.split(",")]
    if not step.isdecimal() or int(step) < 1:
        raise ValueError(f"{text!r} does not begin with an update of 1 or more")
    if len(weights) != sources or not any(weights):
        raise ValueError(f"{text!r} needs {sources} weights, not all of them 0, in their order")
    return int(step), weights


def mistakes(sources: Sequence[str], changes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the two fields of a config: its name, and what to tell the user."""
    read, steps = [], [0]
    for text in sources:
        try:
            read.append(parse_source(text))
        except ValueError as error:
            yield "mixture", f"must be DIR=WEIGHT or DIR=WEIGHT:EPOCHS: {error}"
    if len({os.path.realpath(source.path) for source in read}) < len(read):
        yield "mixture", f"names a directory twice: {', '.join(source.path for source in read)}"
    if read and not any(source.weight for source in read):
        yield "mixture", "needs a weight above 0 to begin with"
    if changes and not sources:
        yield "mixture_changes", "needs data.mixture, whose weights it changes"
        return
    for text in changes:
        try:
            steps.append(parse_change(text, len(sources))[0])
        except ValueError as error:
            yield "mixture_changes", f"must be STEP=WEIGHT,WEIGHT,...: {error}"
    if steps != sorted(set(steps)):
        yield "mixture_changes", f"must come at ever later updates, not at {steps[1:]}"


def _number(text: str, whole: str) -> Fraction:
    # an exponent of more digits would take for ever, or be no float
    number = Fraction(text) if re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d\d?)?", text, re.ASCII) else -1
    if number < 0:
        raise ValueError(f"{whole!r}: {text!r} is not a number of 0 or more, such as 30 or 0.5")
    return Fraction(number)


def _positive(text: str, whole: str) -> Fraction:
    if not (number := _number(text, whole)):
        raise ValueError(f"{whole!r}: {text!r} must be above 0")
    return number


class _Part(NamedTuple):
    """One source's share of the rows that those before it leave: `(offset + per left) / over`.

    A half is in the offset, so that whole division rounds half up.
    """

    source: int
    offset: int
    per: int
    over: int

    @classmethod
    def through(cls, source: int, left: int, share: Fraction, slope: Fraction) -> "_Part":
        """The part that has `share` of `left` rows, and `slope` of every further one."""
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

    What rounding has left owing is carried over a change, so that no source starves however often
    weights change.
    """

    def __init__(self, weights: Sequence[Fraction]):
        # heaviest first: each rounding is then shared out by the smallest part
        order = sorted(range(len(weights)), key=lambda k: (-weights[k], k))
        self._stages: list[tuple[int, list[_Part]]] = []
        self._begin(0, weights, [_Part(k, 1, 0, 2) for k in order])

    def change(self, rows: int, weights: Sequence[Fraction]) -> None:
        """Take other weights after the first `rows` rows; changes come in their order."""
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
        """How many of the first `rows` rows each source has; they add up to `rows`."""
        _, parts = next(stage for stage in reversed(self._stages) if stage[0] <= rows)
        counts = [0] * len(parts)
        for part in parts:
            counts[part.source] = part.count(rows)
            rows -= counts[part.source]
        return counts


class Mixture:
    """The plan of a run: sources, and weights that may change where updates begin.

    `rows_before` gives the rows of all updates before one.
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
        """How many of the run's first `rows` rows each source has."""
        return self._shares.counts(rows)

    def is_read(self) -> list[bool]:
        """Whether each source ever has a weight."""
        return [any(of_source) for of_source in zip(*(w for _, w in self._weights), strict=True)]

    def place(self, row: int) -> tuple[int, int]:
        """The source of a row, and how many rows of that source come before it."""
        before, after = self.counts(row), self.counts(row + 1)
        source = next(k for k, count in enumerate(before) if after[k] > count)
        return source, before[source]

    def shares(self, step: int) -> list[float]:
        """The share of each source in update `step`, counted from 0; they add up to 1."""
        weights = next(w for first, w in reversed(self._weights) if first <= step)
        return [float(weight / sum(weights)) for weight in weights]

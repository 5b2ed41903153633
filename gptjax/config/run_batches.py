"""The batches of a whole run: their schedule may change, and data may be passed over, on the way.

The place in the data is one number of rows. Every stretch of a run begins with the number of rows
that lie before it, so whatever the batches were until then, no row is read twice or left out.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from gptjax.config.batches import BatchSchedule


class Stretch(NamedTuple):
    """The steps from `step` on, counted from 0, with `place` rows of the data before them."""

    step: int
    place: int
    schedule: BatchSchedule

    def rows_before(self, step: int) -> int:
        """Rows of the data before `step`, if that is in this stretch."""
        return self.place + self.schedule.rows_before(step) - self.schedule.rows_before(self.step)


class RunBatches(NamedTuple):
    """The stretches of one run, in order; a new run has one.

    >>> run = RunBatches.of(BatchSchedule(4, 4, 0)).continued(10, 40, BatchSchedule(16, 16, 0))
    >>> [run.rows(step) for step in (9, 10)], [run.rows_before(step) for step in (9, 10, 11)]
    ([4, 16], [36, 40, 56])
    """

    stretches: tuple[Stretch, ...]

    @classmethod
    def of(cls, schedule: BatchSchedule) -> Self:
        """The batches of a run that keeps its schedule."""
        return cls((Stretch(0, 0, schedule),))

    @classmethod
    def from_lists(cls, stretches: Sequence[Sequence[int]]) -> Self:
        """The batches that `as_lists` wrote."""
        return cls(tuple(Stretch(at, place, BatchSchedule(*s)) for at, place, *s in stretches))

    def as_lists(self) -> list[list[int]]:
        """Every stretch as the numbers step, place, first, final, steps: for JSON."""
        return [[s.step, s.place, *s.schedule] for s in self.stretches]

    @property
    def schedule(self) -> BatchSchedule:
        """The schedule of the last stretch."""
        return self.stretches[-1].schedule

    def continued(self, step: int, rows: int, schedule: BatchSchedule | None = None) -> Self:
        """The batches of a run that has read `rows` rows before `step`, and goes on from there.

        Without a schedule it keeps that of `step`. What was planned from `step` on is dropped.
        """
        schedule = schedule or self._at(step).schedule
        kept = tuple(s for s in self.stretches if s.step < step)
        if kept and (kept[-1].schedule, kept[-1].rows_before(step)) == (schedule, rows):
            return type(self)(kept)
        return type(self)((*kept, Stretch(step, rows, schedule)))

    def rows(self, step: int) -> int:
        """Rows of step `step`, counted from 0."""
        return self._at(step).schedule.rows(step)

    def rows_before(self, step: int) -> int:
        """Rows of the data that lie before `step`."""
        return self._at(step).rows_before(step)

    def sizes(self) -> list[int]:
        """Every number of rows that a step of the last schedule has, smallest first."""
        return self.schedule.sizes()

    def _at(self, step: int) -> Stretch:
        return next(s for s in reversed(self.stretches) if s.step <= step)


Batches = RunBatches | BatchSchedule

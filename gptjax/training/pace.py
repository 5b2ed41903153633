"""The speed of a run: its time, divided at the ends of the calls of the compiled program.

Speed and waits of a row in metrics.jsonl come from the same interval. The intervals follow each
other without gaps, except for pauses (validating, saving, sampling, writing a trace), so tokens
over seconds is the true speed of any number of rows.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from jax import Array

from gptjax.runs.metrics import Row

T = TypeVar("T")


class Interval(NamedTuple):
    """The time that a call took; nan if it was not measured."""

    seconds: float
    waited: float
    """Seconds of these in which the host waited for data."""


UNMEASURED = Interval(math.nan, math.nan)


class Dispatched(NamedTuple):
    """A call of the compiled program: its last step, its number of steps, and their numbers."""

    step: int
    steps: int
    metrics: dict[str, Array]
    interval: Interval | None = None
    """None until the host has seen the end of the call."""


def with_waits(items: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each item, and the seconds that its reader waited for it.

    For batches this bounds how long the devices waited for data: they still had the step before.
    """
    asked = time.perf_counter()
    for item in items:
        yield item, time.perf_counter() - asked
        asked = time.perf_counter()


def is_idle(last: Dispatched | None) -> bool:
    """Whether the devices have done all that they were given, so that they wait with the host."""
    return last is None or last.metrics["loss"].is_ready()  # pyright: ignore[reportAttributeAccessIssue]


class Throughput:
    """Measures calls, one after the other."""

    def __init__(self, peak: float | None = None):
        """`peak` is the rate, in tokens a second, at which all devices would be at their peak."""
        self._peak = math.nan if peak is None else peak
        self._began = math.nan  # the first call is not measured, because its memory is new
        self._waited = 0.0

    def wait(self, seconds: float) -> None:
        """Note that the host has just waited for data."""
        self._waited += seconds

    def begin(self) -> None:
        """Begin an interval now; the time since the last one was a pause."""
        self._began, self._waited = time.perf_counter(), 0.0

    def end(self, calls: int = 1) -> Interval:
        """End an interval and begin the next; calls that end together share it equally."""
        began, waited = self._began, self._waited
        self.begin()
        return Interval((self._began - began) / calls, waited / calls)

    def seen(
        self, previous: Dispatched | None, last: Dispatched
    ) -> tuple[Dispatched | None, Dispatched]:
        """Measure those of the two latest calls that have ended when the last one is dispatched.

        Small programs on CPUs run while they are dispatched. If they were measured only when their
        numbers are fetched, one call would seem to take no time and the next one twice its time.
        """
        if not is_idle(last):
            return previous, last
        if previous is None or previous.interval is not None:
            return previous, last._replace(interval=self.end())
        shared = self.end(calls=2)
        return previous._replace(interval=shared), last._replace(interval=shared)

    def rates(self, interval: Interval, tokens: int, steps: int) -> Row:
        """The values of each step of a call for metrics.jsonl; nan if unknown.

        `tokens_per_second`; `mfu`, the share of the peak (0 to 1); `data_wait`, in seconds a step.
        """
        rate = tokens / (interval.seconds or math.nan)
        waited = interval.waited / steps
        return {"data_wait": waited, "tokens_per_second": rate, "mfu": rate / self._peak}

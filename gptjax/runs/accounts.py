"""The account of a run: where the hours of all of its starts went, and what they cost.

`accounts.json` in the directory of a run lists its starts: when each began and last gave a sign of
life, its seconds by phase, and the seconds before it in which no process lived. These add up to the
wall clock from the beginning of the first process to now. The time after a start that completed the
run is in no account, because nothing was to be done. Seconds of steps that were trained, but not
saved before a process died, move from training to lost progress.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjax.base.terminal import hours_minutes_seconds
from gptjax.cluster.phases import Phase
from gptjax.runs.directory import ACCOUNTS

VERSION = 1
LOST = "lost_progress"
BETWEEN = "between_starts"
SPENT_ON = (*(phase.value for phase in Phase), LOST, BETWEEN)
"""What seconds are counted as, in this order."""
AT_BEGIN = (Phase.START, Phase.COMPILING, Phase.PREFLIGHT, Phase.RESTORING)
"""What a start spends before it trains, however far it gets."""
LONGEST_GAP = 366 * 86400.0  # seconds between two starts; more is a clock that was set
HOUR = 3600.0


@dataclass
class Start:
    """One start of a run: a process, or several at once, of which process 0 counts."""

    began: float
    """Unix time at which process 0 began."""
    ended: float
    """Unix time of its last sign of life."""
    seconds: dict[str, float]
    """Seconds of its life by phase; what is lost still counts as training here."""
    gap: float = 0.0
    """Seconds before it in which the run had no process."""
    lost: float = 0.0
    """Seconds that earlier starts, or this one, trained beyond the checkpoint that it went on from,
    or went back to."""
    from_step: int | None = None
    """The step that it went on from; None if it did not get so far."""
    to_step: int | None = None
    """The last step that it trained; None if it trained none."""
    exit: int | None = None
    """Its exit code; None if it was killed, or lives."""
    devices: int = 1
    """Devices of all of its processes."""
    device: str = ""
    """What jax calls such a device."""
    processes: int = 1
    """Its processes, on all hosts."""
    price: float | None = None
    """Price of a device for an hour, in any currency."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of gptjax and of the packages that decide its numbers."""

    @property
    def life(self) -> float:
        """Seconds that it lived."""
        return sum(self.seconds.values())


class DamagedError(ValueError):
    """A file that is no account."""


def read_accounts(run_path: Path) -> list[Start]:
    """The starts of a run, oldest first; the last one may still be alive.

    Empty if there is no account, as for a run of an earlier version. Raises `DamagedError`.
    """
    path = run_path / ACCOUNTS
    try:
        found = json.loads(path.read_bytes())
        if found["version"] != VERSION:
            raise ValueError(found["version"])
        return [_start(values) for values in found["starts"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{path} is damaged") from error


def _start(values: Mapping[str, Any]) -> Start:
    """A start as it was written; raises an error of many kinds if a value makes no sense."""
    start = Start(**values)
    times = [start.began, start.ended, start.gap, start.lost, *start.seconds.values()]
    if not all(math.isfinite(t) for t in times) or min(times[2:]) < 0:
        raise ValueError(times)
    if unknown := set(start.seconds) - set(Phase):
        raise ValueError(unknown)
    return start


def as_json(starts: Sequence[Start]) -> bytes:
    """The text of accounts.json."""
    listed = [dataclasses.asdict(start) for start in starts]
    return (json.dumps({"version": VERSION, "starts": listed}) + "\n").encode()


def gap_before(began: float, last: Start | None) -> tuple[float, str | None]:
    """Seconds between the last sign of life of one start and the next; and a note on the clock.

    No time is counted after a start that completed the run, or if the clock was set meanwhile.
    """
    if last is None or last.exit == 0:
        return 0.0, None
    gap = began - last.ended
    if 0 <= gap <= LONGEST_GAP:
        return gap, None
    way = f"back by {-gap:,.0f} s" if gap < 0 else f"forward by {gap / 86400:,.0f} days"
    return 0.0, (
        f"note     the clock went {way} since the last start of this run, so its account counts "
        "no time between the two"
    )


def seconds_by_kind(starts: Sequence[Start]) -> dict[str, float]:
    """Seconds of all starts by kind (see SPENT_ON); their sum is the wall clock of the run."""
    total = dict.fromkeys(SPENT_ON, 0.0)
    for start in starts:
        for name, seconds in start.seconds.items():
            total[name] += seconds
        total[BETWEEN] += start.gap
        total[LOST] += start.lost
        total[Phase.TRAINING] -= start.lost
    return total


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of the wall clock in which steps were trained that were not lost, 0 to 1.

    >>> goodput({"training": 3.0, "saving": 1.0})
    0.75
    """
    return seconds[Phase.TRAINING] / (sum(seconds.values()) or math.inf)


def spent(starts: Sequence[Start], price: float) -> float:
    """What the devices of all starts have cost while processes lived, in the price's currency.

    A start that had no price counts at `price`, that of one device for an hour.
    """
    return sum(_paid(start, price) * start.life for start in starts)


def to_go(starts: Sequence[Start], price: float, work: Callable[[int], float], end: int) -> float:
    """What the steps up to `end` will cost at the mean rate so far, without what begins a start.

    `work` gives the work that is done before a step, in any unit. nan if nothing was done yet.
    """
    firsts = [start.from_step for start in starts if start.from_step is not None]
    lasts = [start.to_step for start in starts if start.to_step is not None]
    if not firsts or not lasts or (done := work(lasts[-1]) - work(firsts[0])) <= 0:
        return math.nan
    paid = sum(
        _paid(start, price) * (start.life - sum(start.seconds.get(p, 0.0) for p in AT_BEGIN))
        for start in starts
    )
    return paid / done * max(0.0, work(end) - work(lasts[-1]))


def _paid(start: Start, price: float) -> float:
    """The price of a second of a start."""
    return (price if start.price is None else start.price) * start.devices / HOUR


def account_in_words(seconds: Mapping[str, float]) -> str:
    """The share that trained, and every kind of seconds that there were."""
    parts = [f"{name.replace('_', ' ')} {_clock(s)}" for name, s in seconds.items() if s >= 0.05]
    return f"{goodput(seconds):.1%} of {_clock(sum(seconds.values()))}: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    """Seconds below a minute, then hours, minutes and seconds."""
    return f"{seconds:.1f} s" if seconds < 60 else hours_minutes_seconds(round(seconds))

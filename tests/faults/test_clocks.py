"""A clock that is wrong, or jumps, changes no number and no checkpoint of a run."""

import time
from collections.abc import Callable

import pytest
from faulty_runs import Crash, crash, train_here
from killed_runs import assert_same_run, checkpoints

pytestmark = pytest.mark.slow
DAY = 86400.0


class Clock:
    """The time of the system, moved by so many seconds."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.ahead, real, nanoseconds = 0.0, time.time, time.time_ns
        local, strftime = time.localtime, time.strftime
        patch.setattr(time, "time", lambda: real() + self.ahead)
        patch.setattr(time, "time_ns", lambda: nanoseconds() + int(self.ahead * 1e9))
        patch.setattr(time, "localtime", lambda at=None: local(time.time() if at is None else at))
        patch.setattr(time, "strftime", lambda form, t=None: strftime(form, t or time.localtime()))

    def jump(self, seconds: float) -> Callable[[], None]:
        """An action that moves the clock."""

        def jump() -> None:
            self.ahead += seconds

        return jump


JUMPS = {
    "back by 300 days and on by 400": {5: -300 * DAY, 11: 400 * DAY},
    "back by an hour and to 1970": {5: -3600.0, 11: -(55 * 365) * DAY},
}


@pytest.mark.parametrize("which", JUMPS)
def test_a_clock_that_jumps_while_a_run_trains(
    prepared, tmp_path, unbroken_here, report, monkeypatch, which
):
    """It crashes after the jump as well, and goes on at the time that the clock then shows."""
    clock = Clock(monkeypatch)
    jumps = {step: clock.jump(seconds) for step, seconds in JUMPS[which].items()}
    with pytest.raises(Crash):
        train_here(prepared, tmp_path, {**jumps, 14: crash})
    assert max(checkpoints(tmp_path)) == 12
    assert train_here(prepared, tmp_path) == 0
    assert_same_run(tmp_path, unbroken_here)
    report(f"clock jumps {which}")

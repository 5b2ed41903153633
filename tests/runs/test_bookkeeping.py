"""The account of a run goes on from start to start, whatever happens to it or to its file."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from gptjax.base.errors import UserError
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.watchdog import Watchdog
from gptjax.runs.accounts import read_accounts, seconds_by_kind
from gptjax.runs.bookkeeping import Bookkeeper
from gptjax.runs.directory import ACCOUNTS


class Clocks:
    """Both clocks of one machine; the wall clock can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steady: list[float]):
        self._steady, self._wall = steady, 1e9
        monkeypatch.setattr(time, "time", lambda: self._wall)

    def pass_by(self, seconds: float) -> None:
        self._steady[0] += seconds
        self._wall += seconds

    def set_wall(self, by: float) -> None:
        self._wall += by

    def now(self) -> float:
        return self._steady[0]


@pytest.fixture
def clocks(monkeypatch, clock) -> Clocks:
    return Clocks(monkeypatch, clock)


class Life:
    """One start as the loop makes it, of one second a step; it saves after every tenth."""

    def __init__(self, path: Path | None, clocks: Clocks, price: float | None = None):
        self.clocks, self.phases = clocks, Phases(Watchdog(0))
        clocks.pass_by(5.0)
        self.books = Bookkeeper(path, self.phases, price)

    def spend(self, phase: Phase, seconds: float) -> None:
        with self.phases.during(phase):
            self.clocks.pass_by(seconds)

    def train(self, rows: list[dict[str, Any]], steps: int) -> None:
        """Go on from the last saved row, and be killed after `steps`."""
        del rows[len(rows) // 10 * 10 :]
        self.books.begin(len(rows), rows[-1] if rows else {})
        for step in range(len(rows) + 1, steps + 1):
            self.spend(Phase.TRAINING, 1.0)
            self.books.reached(step)
            rows.append({"step": step} | (self.books.row() if step % 10 == 0 else {}))
            if step % 10 == 0:
                self.spend(Phase.SAVING, 0.5)

    def write(self) -> None:
        """What the thread does now and then."""
        self.books.close()


def test_three_killed_starts_and_a_last_one_add_up_to_the_wall_clock(tmp_path, clocks):
    path, began, rows = tmp_path / ACCOUNTS, clocks.now(), []
    for steps in (7, 25, 38):  # 7 + 5 + 8 of these seconds are lost
        life = Life(path, clocks)
        life.spend(Phase.COMPILING, 3.0)
        life.train(rows, steps)
        life.write()
        clocks.pass_by(60.0)
    life = Life(path, clocks)
    life.train(rows, 40)
    assert life.books.end(0) == 0
    starts = read_accounts(tmp_path)
    seconds = seconds_by_kind(starts)
    assert sum(seconds.values()) == pytest.approx(clocks.now() - began)
    assert {name: s for name, s in seconds.items() if s} == pytest.approx(
        {
            "start_up": 20.0, "compiling": 9.0, "training": 40.0, "saving": 2.0,
            "lost_progress": 20.0, "between_starts": 180.0,
        }
    )  # fmt: skip
    assert [(s.from_step, s.to_step, s.exit) for s in starts] == [
        (0, 7, None), (0, 25, None), (20, 38, None), (30, 40, 0)
    ]  # fmt: skip
    assert rows[-1]["seconds"]["training"] == 40.0
    assert rows[-1]["goodput"] == pytest.approx(40.0 / (sum(seconds.values()) - 0.5), abs=1e-5)


def test_a_start_that_goes_back_loses_what_it_trained_since(tmp_path, clocks):
    life, rows = Life(tmp_path / ACCOUNTS, clocks), []
    life.train(rows, 18)
    life.train(rows, 12)
    seconds = life.books.row()["seconds"]
    assert (seconds["training"], seconds["lost_progress"]) == (12.0, 8.0)
    life.write()
    assert read_accounts(tmp_path)[0].from_step == 0


def test_a_row_of_an_earlier_version_loses_nothing(clocks):
    life = Life(None, clocks)
    life.books.begin(10, {"step": 10})
    life.spend(Phase.TRAINING, 4.0)
    assert life.books.row()["seconds"]["lost_progress"] == 0.0


def test_a_phase_in_another_is_counted_once(clocks):
    phases = Phases(Watchdog(0))
    clocks.pass_by(1.0)
    with phases.during(Phase.TRAINING):
        clocks.pass_by(2.0)
        with phases.during(Phase.SAVING):
            clocks.pass_by(4.0)
            inside = phases.so_far()
        clocks.pass_by(8.0)
        phases.count_as(Phase.WAITING, 3.0)
    found = phases.so_far()
    assert (inside[Phase.SAVING], inside[Phase.TRAINING]) == (4.0, 2.0)
    assert {phase: s for phase, s in found.items() if s} == {
        Phase.START: 1.0, Phase.TRAINING: 7.0, Phase.SAVING: 4.0, Phase.WAITING: 3.0
    }  # fmt: skip


@pytest.mark.parametrize("jump", [-86400.0 * 1000, 86400.0 * 4000])
def test_a_clock_that_is_set_loses_no_second_that_a_process_counted(jump, tmp_path, clocks):
    path, rows = tmp_path / ACCOUNTS, []
    life = Life(path, clocks)
    life.train(rows, 4)
    clocks.set_wall(jump)  # while it lives
    life.train(rows, 10)
    life.write()
    clocks.set_wall(-2 * jump)  # while nothing lives
    life = Life(path, clocks)
    assert len(life.books.notes) == 1
    life.train(rows, 20)
    life.books.end(0)
    seconds = seconds_by_kind(read_accounts(tmp_path))
    assert seconds["between_starts"] == 0.0
    assert sum(seconds.values()) == pytest.approx(5 + 4 + 10.5 + 5 + 10.5)


def test_a_damaged_account_begins_anew_and_is_told(tmp_path, clocks):
    path = tmp_path / ACCOUNTS
    path.write_text("{")
    life = Life(path, clocks)
    assert life.books.notes == [f"note     {path} is damaged: the account of this run begins anew"]
    life.books.end(0)
    assert len(read_accounts(tmp_path)) == 1


def test_an_account_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, clocks):
    path, said = tmp_path / ACCOUNTS, []
    obstacle = tmp_path / f".{ACCOUNTS}.tmp"
    obstacle.mkdir()
    life = Life(path, clocks)
    life.train([], 10)
    life.write()
    for _ in range(2):
        life.books.tell(said.append, lambda step: step, 20)
        life.write()
    assert [line for line in said if "cannot be written" in line] == said[:1]
    assert not path.exists()
    obstacle.rmdir()
    life.books.end(0)
    assert len(read_accounts(tmp_path)) == 1


def test_a_full_disk_is_left_as_it_is(tmp_path, clocks, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    life = Life(tmp_path / ACCOUNTS, clocks)
    life.write()
    before = (tmp_path / ACCOUNTS).read_bytes()
    monkeypatch.setattr("os.fsync", fail)
    life.spend(Phase.TRAINING, 5.0)
    life.books.end(74)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_the_account_is_written_without_being_asked(tmp_path):
    phases = Phases(Watchdog(0))
    books = Bookkeeper(tmp_path / ACCOUNTS, phases, None)
    deadline = time.monotonic() + 30
    while not read_accounts(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    books.begin(0, {})
    books.row()
    while read_accounts(tmp_path)[0].from_step is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    books.close()
    assert [path.name for path in tmp_path.iterdir()] == [ACCOUNTS]


def test_a_complete_run_keeps_its_account_until_it_goes_on(tmp_path, clocks):
    path, rows = tmp_path / ACCOUNTS, []
    life = Life(path, clocks)
    life.train(rows, 10)
    life.books.end(0)
    before = path.read_bytes()
    clocks.pass_by(1000.0)
    life = Life(path, clocks)
    assert not life.books.is_kept
    life.books.end(0)
    assert path.read_bytes() == before
    life = Life(path, clocks)
    life.train(rows, 20)
    assert life.books.is_kept
    life.books.end(0)
    assert seconds_by_kind(read_accounts(tmp_path))["between_starts"] == 0.0


LOST_PEER = type("JaxRuntimeError", (RuntimeError,), {})("Gloo: Connection closed by peer")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no"), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 143),
        (ValueError("bug"), 70), (LOST_PEER, 75),
        (OSError(28, "No space left on device"), 74), (OSError(2, "No such file"), 70),
        (None, None),
    ],
)  # fmt: skip
def test_a_start_that_failed_is_written_down_with_its_exit_code(error, code, tmp_path, clocks):
    life = Life(tmp_path / ACCOUNTS, clocks)
    life.books.failed(type(error) if error else None, error, None)
    life.books.close()
    assert read_accounts(tmp_path)[0].exit == code


def test_a_price_is_told_with_what_is_to_go(clocks, monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    life, said = Life(None, clocks, price=450.0), []  # for one of eight virtual devices: 1 a second
    life.train([], 9)
    life.books.tell(said.append, lambda step: step, 40)
    life.books.tell(said.append, lambda step: step, 40)
    moment[0] = 61.0
    life.spend(Phase.EVALUATION, 1000.0)
    life.books.tell(said.append, lambda step: step, 9)
    life.books.tell_all(said.append)
    assert "train.price is paid for CPUs as for GPUs: 8 of them" in life.books.notes[0]
    assert said == [
        "goodput  64.3% so far; price so far 14.00, about 31.00 to go (450 per GPU and hour)",
        "goodput  0.9% so far; price so far 1,014 (450 per GPU and hour)",
        "goodput  0.9% of 0:16:54: start up 5.0 s, training 9.0 s, evaluation 0:16:40; "
        "price so far 1,014 (450 per GPU and hour)",
    ]
    assert life.books.row()["spent"] == 1014.0


def test_a_row_can_be_written(clocks):
    row = Life(None, clocks).books.row()
    assert json.loads(json.dumps(row)) == row
    assert math.isfinite(row["goodput"])
    assert set(row) == {"goodput", "seconds"}

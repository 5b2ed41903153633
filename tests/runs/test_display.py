"""Without a terminal a run prints whole lines now and then; log.txt has all of them."""

import re
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.base.terminal import hours_minutes_seconds
from gptjax.runs import display
from gptjax.runs.display import Display

SPEED = {"tokens": 1000, "tokens_per_second": 12345.6, "data_wait": 0.0}
ROW = {"train_loss": 2.5, "learning_rate": 3e-4, **SPEED}
VALIDATION = {"val_loss": 1.25, "val_stderr": 0.03125, "val_bits_per_byte": 1.8034}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "runs" / "x" / "log.txt"


def logged(log: Path) -> list[str]:
    """The messages of a log, without their times."""
    lines = log.read_text().splitlines()
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in lines]


@pytest.mark.parametrize(
    "text", ["plain", "[bold]x[/bold] [/] :smile: 1 'a'", "word " * 60 + "end", "caf\u00e9 \u2603"]
)  # fmt: skip
def test_a_message_is_printed_and_logged_as_it_is(text, log, capsys):
    shown = Display(log)
    shown.say(text)
    shown.close()
    assert capsys.readouterr().out == text + "\n"
    assert logged(log) == [text]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", log.read_text())


def test_without_a_log_nothing_is_said(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    shown = Display(None)
    shown.say("text")
    shown.table("title", ("a",), [("b",)])
    shown.start(0, 2)
    shown.update([{"step": 1, **ROW, **VALIDATION}])
    shown.close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_message_is_in_the_log_at_once_and_a_second_display_adds_to_it(log):
    first = Display(log)
    first.say("one")
    assert logged(log) == ["one"]
    first.close()
    second = Display(log)
    second.say("two")
    second.close()
    assert logged(log) == ["one", "two"]


@pytest.mark.parametrize(
    ("error", "logged_error"),
    [
        (UserError("the disk is full"), "error: the disk is full"),
        (ValueError("of a bug"), "error: ValueError: of a bug"),
    ],
)
def test_the_error_that_ends_a_run_is_logged_and_not_printed(error, logged_error, log, capsys):
    Display(log).failed(type(error), error, None)
    assert logged(log) == [logged_error]
    assert capsys.readouterr().out == ""


def test_a_table_is_printed_whole_and_logged_row_by_row(log, capsys):
    rows = [("h/attn/[c]/kernel", "2 x 3", "yes"), ("ln_f/scale", "3", "no"), ("n" * 90, "1", "no")]
    shown = Display(log)
    shown.table("weight decay [0.1]", ("parameter", "shape", "decayed"), rows)
    shown.close()
    out = capsys.readouterr().out
    assert out.splitlines()[0].rstrip() == "weight decay [0.1]"
    assert [word for word in ("parameter", "shape", "decayed") if word not in out] == []
    assert re.search(r"h/attn/\[c\]/kernel +2 x 3 +yes", out)
    assert out.count("n" * 20) >= 3
    assert out.count("n") >= 90
    assert log.read_text().splitlines() == ["  " + "  ".join(row) for row in rows]


def test_lines_come_at_first_then_every_few_seconds_and_with_every_validation(log, clock, capsys):
    shown = Display(log)
    shown.start(step=0, max_steps=100)
    assert capsys.readouterr().out == ""
    seen = []
    for step in range(1, 13):
        clock[0] += 1.0
        row = {"step": step, **ROW} | (VALIDATION if step == 3 else {})
        shown.update([row])
        seen += [step] * len(capsys.readouterr().out.splitlines())
    shown.close()
    assert seen == [1, 3, 6, 11]
    assert [line.split()[1] for line in logged(log)] == ["1/100", "3/100", "6/100", "11/100"]


def test_a_line_has_the_numbers_and_the_time_that_is_left(log, clock, capsys):
    shown = Display(log)
    shown.start(step=100, max_steps=2000)
    clock[0] += 20.0
    shown.update([{"step": 101, **ROW}])  # ends the compilation: no measure of what is left
    clock[0] += 20.0
    shown.update([{"step": 111, **ROW}])
    shown.update([{"step": 111, **ROW, **VALIDATION}])
    shown.update([{"step": 112, "val_loss": 1.25, "val_stderr": 0.0}])  # of a single example
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    numbers = "lr 3.00e-04  12,346 tok/s"
    assert lines == [
        f"step 101/2000  loss 2.5000  {numbers}",
        f"step 111/2000  loss 2.5000  {numbers}  left 1:02:58",
        f"step 111/2000  loss 2.5000  val 1.2500 +- 0.0312 (1.803 bits/byte)  {numbers}",
        "step 112/2000  val 1.2500  12,346 tok/s",
    ]
    assert logged(log) == lines


def test_numbers_that_were_not_measured_are_left_out(log, clock, capsys):
    shown = Display(log)
    shown.start(step=4, max_steps=5)
    shown.update([{"step": 5}])
    shown.close()
    assert capsys.readouterr().out.split() == ["step", "5/5"]


def measured(step: int, seconds: float, waited: float, **more: float) -> dict:
    """A row of a step of 1,000 tokens."""
    rate = 1000 / seconds
    return {"step": step, "tokens": 1000, "tokens_per_second": rate, "data_wait": waited, **more}


def last_line(log: Path, calls: list[list[dict]]) -> str:
    """The line of a validation that is due after these calls."""
    shown = Display(log)
    shown.start(step=0, max_steps=500)
    for rows in calls[:-1]:
        shown.update(rows)
    *others, last = calls[-1]
    shown.update([*others, {**last, **VALIDATION}])
    shown.close()
    return logged(log)[-1]


@pytest.mark.parametrize(
    ("row", "end"),
    [
        (measured(1, 0.5, 0.0), "2,000 tok/s"),
        (measured(1, 0.5, 0.0049), "2,000 tok/s"),
        (measured(1, 0.5, 0.1), "2,000 tok/s  20% waiting for data"),
        (measured(1, 0.5, 0.5), "2,000 tok/s  100% waiting for data"),
        (measured(1, 0.5, 0.0, mfu=0.4123), "2,000 tok/s  41.2% MFU"),
        (measured(1, 0.5, 0.1, mfu=0.5), "2,000 tok/s  50.0% MFU  20% waiting for data"),
    ],
)
def test_utilisation_and_a_wait_that_matters_are_shown(log, clock, row, end):
    assert last_line(log, [[row]]).endswith(end)


def test_speed_utilisation_and_waits_are_means_over_the_same_five_seconds(log, clock):
    calls = [[measured(1, 100.0, 90.0, mfu=0.9)]]  # is forgotten once there are others
    calls += [[measured(step, 1 / 128, 0.0, mfu=0.5)] for step in range(2, 130)]
    calls += [[measured(130, 4.5, 4.0, mfu=0.01)]]  # a call that waited
    assert last_line(log, calls[:1]).endswith("10 tok/s  90.0% MFU  90% waiting for data")
    # the last 64 short calls, of half a second, and the long one
    assert last_line(log, calls).endswith("13,000 tok/s  5.9% MFU  80% waiting for data")


def test_all_rows_of_a_call_count(log, clock):
    call = [measured(step, 0.25, 0.125) for step in (1, 2, 3, 4)]
    shown = Display(log)
    shown.start(step=0, max_steps=8)
    shown.update(call)
    shown.update([{"step": 5, "tokens": 1000, "data_wait": 9.0}])  # was not measured
    shown.update([measured(6, 1.0, 0.0), {**measured(7, 1.0, 0.0), **VALIDATION}])
    shown.close()
    assert logged(log)[-1].endswith("2,000 tok/s  17% waiting for data")


def test_what_is_left_grows_with_the_batch(log, clock):
    shown = Display(log)
    shown.start(
        step=0, max_steps=100, work=lambda step: step if step < 50 else 50 + 3 * (step - 50)
    )
    shown.update([{"step": 1}])
    clock[0] += 48.0
    shown.update([{"step": 49}])
    shown.close()
    assert logged(log)[-1].endswith("left 0:02:31")


def test_the_first_step_after_a_start_has_no_time_to_go_by(log, clock):
    shown = Display(log)
    shown.start(step=7, max_steps=9)
    shown.update([{"step": 7, **ROW}])
    shown.close()
    assert "left" not in logged(log)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.9, "0:00:59"), (61, "0:01:01"), (3599, "0:59:59"), (360_000, "100:00:00")],
)
def test_time_is_hours_minutes_and_seconds(seconds, text):
    assert hours_minutes_seconds(seconds) == text


def test_closing_before_anything_began_is_fine(log):
    shown = Display(log)
    shown.stop()
    shown.close()
    assert log.read_text() == ""


def test_a_terminal_has_a_live_line_and_logs_validations_only(log, clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Display(log)
    shown.start(step=0, max_steps=50)
    for step in range(1, 5):
        clock[0] += 10.0
        shown.update([{"step": step, **ROW} | (VALIDATION if step == 2 else {})])
    shown.stop()
    shown.say("after")
    shown.close()
    assert "step 4/50" in capsys.readouterr().out
    assert [line.split("  ")[0] for line in logged(log)] == ["step 2/50", "after"]


def test_a_classification_shows_its_figures_and_examples_a_second(log, capsys):
    shown = Display(log, "example")
    shown.start(0, 10)
    shown.update([{"step": 1, **ROW, **SPEED}])
    figures = {"val_accuracy": 0.973, "val_macro_f1": 0.95}
    shown.update([{"step": 2, **ROW, **SPEED, **VALIDATION, **figures}])
    shown.close()
    last = logged(log)[-1]
    assert "acc 97.3%  macro F1 0.950" in last
    assert "ex/s" in last
    assert "tok/s" not in log.read_text()

"""Trackers have every row of metrics.jsonl once, however often what hands them over is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tracker_readers import READERS, Given, in_tensorboard

from gptjax.base.errors import UserError
from gptjax.config import Config, to_json
from gptjax.runs import trackers
from gptjax.runs.metrics import read_rows
from gptjax.runs.row_numbers import numbers_of
from gptjax.runs.trackers import Trackers, require_installed, settled

ROWS = [{"step": step, "train_loss": 1 / step, "tokens": 512} for step in range(1, 31)]
ROWS[9]["val_loss"] = 0.5


def begun(run: Path, rows: list[dict]) -> Path:
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(to_json(Config()))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture(params=READERS)
def name(request, tmp_path, monkeypatch) -> str:
    pytest.importorskip(request.param, reason="a tracker of the extra of its name")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return request.param


def give(name: str, run: Path, step: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "gptjax.runs.tracking", name, str(run), str(step)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def given_to(name: str, run: Path, step: int) -> None:
    process = give(name, run, step)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def expected(rows: list[dict]) -> Given:
    return {row["step"]: pytest.approx(numbers_of(row)) for row in rows}


@pytest.mark.slow
def test_a_tracker_has_every_row_once_however_it_is_given_and_killed(name, tmp_path):
    run = begun(tmp_path / "run", ROWS)
    given_to(name, run, 10)
    state = run / f".{name}.json"
    before = state.read_bytes() if state.exists() else None
    given_to(name, run, 20)
    if before is not None:  # as if it was killed after all rows, before it could note that
        state.write_bytes(before)
        for session in sorted(run.glob("wandb/offline-run-*"))[1:]:
            (run / ".wandb-session-x" / "wandb").mkdir(parents=True)
            session.replace(run / ".wandb-session-x" / "wandb" / session.name)
    process = give(name, run, 30)
    time.sleep(random.Random(name).uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    given_to(name, run, 30)
    assert READERS[name](run) == expected(ROWS)


@pytest.mark.slow
def test_tensorboard_gets_the_rows_again_that_a_run_trains_again(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard")
    run = begun(tmp_path / "run", ROWS)
    for step in (10, 20, 30):
        given_to("tensorboard", run, step)
    again = [{**row, "train_loss": 9.0} if row["step"] > 15 else row for row in ROWS]
    begun(run, again)  # a rollback to step 15, which went on with other data
    given_to("tensorboard", run, 15)
    given_to("tensorboard", run, 30)
    assert in_tensorboard(run) == expected(again)


def test_a_row_counts_once_a_checkpoint_covers_it_and_nothing_can_change_it():
    assert [settled(ROWS[:n], 10, False) for n in (10, 11)] == [9, 10]
    assert settled(ROWS[:10], 10, True) == 10
    assert settled([], 0, False) == -1


def test_trackers_that_are_not_installed_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else name)
    require_installed(["tensorboard"])
    with pytest.raises(UserError, match=r"needs wandb: pip install 'gptjax\[wandb\]'"):
        require_installed(["tensorboard", "wandb"])


def test_a_tracker_that_fails_is_said_and_passed_over(tmp_path):
    said: list[str] = []
    log, saved = (
        SimpleNamespace(rows=ROWS),
        SimpleNamespace(steps=lambda: [10, 20, 30], is_saving=True),
    )
    run = begun(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text("damaged\n")
    tracked = Trackers(["tensorboard"], run, cast(Any, log), cast(Any, saved), said.append)
    tracked.look()
    assert tracked.end(0) == 0
    tracked.close()
    assert [line.split(":")[0] for line in said] == [
        "tensorboard did not get all rows up to step 20"
    ]
    assert "damaged in line 1" in said[0]
    assert read_rows(tmp_path / "none") == []

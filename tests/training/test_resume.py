"""A run that is killed at any moment and started again ends as an unbroken one, bit for bit.

Runs are processes, killed with SIGKILL at moments spread over the run: before the first
checkpoint, right after one, right after a sample, while compiling, near the end. Afterwards every
number in metrics.jsonl but the speed, every sample, every parameter and every moment of Adam is
compared with an unbroken run.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import run_verb
from killed_runs import assert_same_run, checkpoints, killed_once, rows, start, wait_until, written
from tracker_readers import READERS

from gptjax.base.tree import named_leaves
from gptjax.conversion.opening import load_run
from gptjax.data.manifest import Manifest
from gptjax.runs.accounts import read_accounts
from gptjax.runs.digests import DIGESTS
from gptjax.runs.directory import RESULTS
from gptjax.runs.metrics import read_rows
from gptjax.runs.ranking import CURSOR_FILE
from gptjax.runs.row_numbers import numbers_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
STEPS = 400
SAVE_EVERY, SAMPLE_EVERY = 40, 130


def options(data: Manifest, dropout: float) -> list[str]:
    rates = ("--model.embd-pdrop", "--model.attn-pdrop", "--model.resid-pdrop")
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.unroll", 1, "--train.max-steps", STEPS, "--optim.warmup-steps", 10),
        *("--train.save-every-steps", SAVE_EVERY, "--train.eval-every-steps", 50),
        *("--train.sample-every-steps", SAMPLE_EVERY, "--sample.max-new-tokens", 8),
        *(word for name in rates for word in (name, dropout)),
    ]
    return [str(value) for value in values]


def assert_accounted_for(cwd: Path, began: float) -> None:
    """The seconds of all starts, and of none, add up to the wall clock since then."""
    results = json.loads((cwd / "run" / RESULTS).read_bytes())
    last = json.loads((cwd / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    wall = (cwd / "run" / RESULTS).stat().st_mtime - began
    assert sum(results["seconds"].values()) == pytest.approx(wall, rel=0.01)
    assert sum(last["seconds"].values()) == pytest.approx(wall, rel=0.01)
    assert 0 < results["goodput"] < 1
    assert results["seconds"]["between_starts"] > 0
    assert [s.exit for s in read_accounts(cwd / "run")] == [None] * 5 + [0]


@pytest.fixture(scope="module")
def dropout(request) -> float:
    """Given by each test."""
    return request.param


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory, dropout) -> Path:
    directory = tmp_path_factory.mktemp("unbroken")
    result = run_verb("train", *options(prepared, dropout), cwd=directory)
    assert result.returncode == 0, result.stderr
    return directory


def has_new_rows(cwd: Path, count: int) -> Callable[[], bool]:
    """`count` rows, in a file that the process which is starting now has made."""
    path = cwd / "run" / "metrics.jsonl"
    old = path.stat().st_ino if path.exists() else None
    return lambda: path.exists() and path.stat().st_ino != old and written(cwd) >= count


def has_new_checkpoint(cwd: Path) -> Callable[[], bool]:
    old = max(checkpoints(cwd), default=0)
    return lambda: max(checkpoints(cwd), default=0) > old


def has_sample(cwd: Path) -> Callable[[], bool]:
    path = cwd / "run" / "samples.md"
    return lambda: path.exists() and f"## step {SAMPLE_EVERY}\n" in path.read_text()


@pytest.mark.parametrize("dropout", [0.1], indirect=True)
def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(
    prepared, tmp_path, unbroken, dropout
):
    moments = [
        (lambda: has_new_rows(tmp_path, 5), 0.02),  # before the first checkpoint
        (lambda: has_new_checkpoint(tmp_path), 0),  # committed, and perhaps not yet signed
        (lambda: has_sample(tmp_path), 0),  # after a sample that no checkpoint knows of
        (lambda: has_new_rows(tmp_path, 0), 1.0),  # restored, and compiling
        (lambda: has_new_rows(tmp_path, 250), 0.1),
    ]
    delays, began = random.Random(0), time.time()
    for moment, longest_delay in moments:
        delay = delays.uniform(0, longest_delay)
        killed_once(moment(), options(prepared, dropout), tmp_path, delay)
        assert written(tmp_path) < STEPS
    assert checkpoints(tmp_path)

    result = run_verb("train", *options(prepared, dropout), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resuming run after step" in result.stdout
    assert_same_run(tmp_path, unbroken)
    assert_accounted_for(tmp_path, began)


@pytest.mark.parametrize("dropout", [0.1], indirect=True)
def test_sigterm_saves_and_the_next_start_goes_on(prepared, tmp_path, unbroken, dropout):
    happened = has_new_rows(tmp_path, 30)
    process = start(options(prepared, dropout), tmp_path)
    wait_until(happened, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    assert "Traceback" not in output + errors
    stopped_after = len(rows(tmp_path))
    assert 30 <= stopped_after < STEPS
    assert f"stopped by SIGTERM after step {stopped_after}. Everything is saved in run" in output
    assert max(checkpoints(tmp_path)) == stopped_after

    result = run_verb("train", *options(prepared, dropout), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"resuming run after step {stopped_after}" in result.stdout
    assert_same_run(tmp_path, unbroken)


def test_a_validation_that_a_stop_cut_short_is_made_up_for(prepared, tmp_path):
    """Every step is validated here, so that any stop falls on one."""
    short = [*options(prepared, 0.0), "--train.max-steps", "30", "--train.sample-every-steps", "0"]
    short += ["--train.eval-every-steps", "1", "--train.eval-tokens", "1024"]
    for directory in (tmp_path / "stopped", tmp_path / "unbroken"):
        directory.mkdir()
    happened = has_new_rows(tmp_path / "stopped", 5)
    process = start(short, tmp_path / "stopped")
    wait_until(happened, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert len(rows(tmp_path / "stopped")) < 30
    for directory in (tmp_path / "stopped", tmp_path / "unbroken"):
        assert run_verb("train", *short, cwd=directory).returncode == 0
    assert rows(tmp_path / "stopped") == rows(tmp_path / "unbroken")
    assert all("val_loss" in row for row in rows(tmp_path / "unbroken"))


def test_a_ramp_that_is_killed_goes_on_with_the_same_batches(prepared, tmp_path):
    """Killed in each of the two stages of the ramp, and after it; seven steps a call."""
    ramp = ["--train.ramp-from-tokens", "128", "--train.ramp-steps", "100"]
    ramped = [*options(prepared, 0.1), *ramp, "--train.micro-batch", "2"]
    ramped += ["--train.max-steps", "160", "--train.sample-every-steps", "0"]
    ramped += ["--train.save-every-steps", "15"]
    ramped += ["--train.updates-per-call", "7"]
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for directory in (broken, unbroken):
        directory.mkdir()
    for moment in (20, 70, 120):
        killed_once(has_new_rows(broken, moment), ramped, broken)
    for directory in (broken, unbroken):
        result = run_verb("train", *ramped, cwd=directory)
        assert result.returncode == 0, result.stderr
        assert "(grows in stages over the first 100 steps: 128, 256, 512)" in result.stdout
    assert rows(broken) == rows(unbroken)
    tokens = [row["tokens"] for row in rows(unbroken)]
    assert tokens == [128] * 50 + [256] * 50 + [512] * 60
    losses = [row["train_loss"] for row in rows(unbroken)]
    assert sum(losses[-5:]) / 5 < losses[0] - 1


def test_trackers_of_a_run_that_is_killed_have_every_row_once(prepared, tmp_path, monkeypatch):
    """Killed twice with rows beyond its checkpoint, which are trained again."""
    names = ["tensorboard", "wandb"]
    for name in names:
        pytest.importorskip(name, reason=f"the extra {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = [*options(prepared, 0.0), "--train.max-steps", "120", "--train.track", *names]
    tracked += ["--train.save-every-steps", "20", "--train.sample-every-steps", "0"]
    for more in (30, 50):
        killed_once(has_new_rows(tmp_path, more), tracked, tmp_path)
    assert run_verb("train", *tracked, cwd=tmp_path).returncode == 0
    written = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in written] == list(range(1, 121))
    expected = {row["step"]: pytest.approx(numbers_of(row)) for row in written}
    for name in names:
        assert READERS[name](tmp_path / "run") == expected


def test_adapters_that_are_killed_go_on_though_their_base_is_trained_on(
    prepared, trained_run, tmp_path
):
    """Killed after a checkpoint; dropout and a running average, of the adapters alone."""
    base = shutil.copytree(trained_run, tmp_path / "base")
    adapted = [*options(prepared, 0.1), f"--train.init-from={base}@latest", "--model.lora-rank=2"]
    adapted += ["--model.lora-dropout=0.1", "--optim.ema-decay=0.9", "--train.max-steps=120"]
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for directory in (broken, unbroken):
        directory.mkdir()
    killed_once(has_new_checkpoint(broken), adapted, broken)
    results = [run_verb("train", *adapted, cwd=unbroken)]
    # as if the base had been trained on: its latest checkpoint is another one now
    shutil.copytree(base / "checkpoints" / "10", base / "checkpoints" / "30")
    results.append(run_verb("train", *adapted, cwd=broken))
    assert [result.returncode for result in results] == [0, 0], results[-1].stderr
    assert "resuming run after step" in results[-1].stdout
    assert rows(broken) == rows(unbroken)
    one, other = (
        named_leaves(load_run(cwd / "run", averaged=False).params) for cwd in (broken, unbroken)
    )
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], strict=True, err_msg=name)


def test_other_devices_and_micro_batches_go_on_from_the_same_state(prepared, tmp_path):
    """The state comes back exactly; sums in another order change the losses after it by 1e-5.

    Without dropout, whose masks depend on the size of a micro-batch.
    """
    short = [*options(prepared, 0.0), "--train.sample-every-steps", "0", "--optim.peak-lr", "1e-4"]
    short += ["--train.save-every-steps", "10", "--train.keep-latest", "9"]

    def go_on(name: str, steps: int, micro_batch: int, devices: int = 1) -> list[dict]:
        words = [*short, "--train.max-steps", str(steps), "--train.micro-batch", str(micro_batch)]
        words += ["--optim.decay-steps", "20"]
        result = run_verb("train", *words, cwd=tmp_path / name, devices=devices)
        assert result.returncode == 0, result.stderr
        return rows(tmp_path / name)

    def digests(name: str) -> dict[str, int]:
        cursor = tmp_path / name / "run" / "checkpoints" / "10" / CURSOR_FILE
        return json.loads(cursor.read_text())[DIGESTS]

    for name in ("begun", "unbroken"):
        (tmp_path / name).mkdir()
    expected = [row["train_loss"] for row in go_on("unbroken", 20, 4)]
    go_on("begun", 10, 4)
    assert digests("begun") == digests("unbroken")
    for micro_batch, devices in ((1, 1), (2, 2)):
        name = f"{micro_batch} on {devices}"
        shutil.copytree(tmp_path / "begun", tmp_path / name)
        found = go_on(name, 20, micro_batch, devices)
        assert [row["train_loss"] for row in found] == pytest.approx(expected, rel=1e-5)


def test_a_directory_is_trained_in_by_one_process_at_a_time(prepared, tmp_path):
    happened = has_new_rows(tmp_path, 1)
    process = start(options(prepared, 0.0), tmp_path)
    wait_until(happened, process)
    second = run_verb("train", *options(prepared, 0.0), cwd=tmp_path)
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert "error: another process is training in run" in second.stderr

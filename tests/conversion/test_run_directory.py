"""A converted model is a run like any other, written whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prepared_models import random_weights

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.conversion.opening import load_run
from gptjax.conversion.run_directory import CONVERTED, write_run
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.integrity import verify


def test_a_run_gives_back_what_was_written(tmp_path):
    weights = random_weights()
    write_run(weights, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.config.model == weights.model
    assert run.step == 0
    assert run.tokenizer.to_json() == weights.tokenizer.to_json()
    found = named_leaves(run.params)
    assert found.keys() == weights.arrays.keys()
    assert all(np.asarray(found[n]).tobytes() == weights.arrays[n].tobytes() for n in found)
    assert verify(tmp_path / "run" / "checkpoints" / "0") is None  # signed, and undamaged
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["run", "run@best", "run@latest", "run@0"])
def test_every_name_of_its_checkpoint_is_understood(tmp_path, name):
    write_run(random_weights(), tmp_path / "run")
    assert load_run(tmp_path / name).step == 0


def test_its_checkpoint_says_that_it_was_converted(tmp_path):
    write_run(random_weights(), tmp_path / "run")
    checkpointer = Checkpointer(RunDir(tmp_path / "run").checkpoints, read_only=True)
    restored = checkpointer.restore({}, print)
    checkpointer.close()
    assert restored is not None
    assert restored.cursor[CONVERTED] == "a test"


def test_an_empty_directory_may_be_taken_and_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    write_run(random_weights(), tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="exists and is not empty"):
        write_run(random_weights(seed=1), tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a directory"):
        write_run(random_weights(), tmp_path / "file")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


@pytest.mark.parametrize("fails", ["save", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, fails):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if fails == "save":
        monkeypatch.setattr(Checkpointer, "save", full)
    else:
        rename, run = Path.rename, tmp_path / "run"
        named = lambda path, to: full() if to == run else rename(path, to)  # noqa: E731
        monkeypatch.setattr(Path, "rename", named)
    with pytest.raises(OSError, match="No space"):
        write_run(random_weights(), tmp_path / "run")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path, sent):
    program = f"""
import os, pathlib
from gptjax.conversion.new_directory import new_directory
with new_directory(pathlib.Path("out")) as directory:
    (directory / "half").touch()
    os.kill(os.getpid(), {int(sent)})
"""
    command = [sys.executable, "-c", program]
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert stopped.returncode == (143 if sent == signal.SIGTERM else -sent)
    assert os.listdir(tmp_path) == []

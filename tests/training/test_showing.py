"""A sample or a plot that fails, and a run that hangs, cost no checkpoint and change no loss."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import environment_on, without_speed
from small_runs import tiny_on

from gptjax.cluster.stop import StopRequest
from gptjax.cluster.watchdog import StallError
from gptjax.config import Config
from gptjax.config.presets import load_config
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.tokenizers.registry import make_tokenizer
from gptjax.training import fit, showing
from gptjax.training.showing import Showing

STEPS = 6


def out_of_memory(*_: Any) -> str:
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nof 2 GB")


@pytest.fixture
def shown(tmp_path) -> Showing:
    """The samples and curves of a run whose log is in `tmp_path`."""
    run_dir = RunDir(tmp_path)
    tiny = load_config("tiny")
    return Showing(tiny, make_tokenizer("bytes"), run_dir, Display(run_dir.log))


def log(run: Path) -> str:
    return (run / "log.txt").read_text()


def sample(shown: Showing, params: Any, before_leaving: Any = lambda: None) -> None:
    shown.sample(3, params, StopRequest(), lambda: None, before_leaving)


def test_a_sample_that_cannot_be_made_or_kept_is_named_in_one_line(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(showing, "sample_after", out_of_memory)
    sample(shown, {"w": jax.numpy.ones(2)})
    said = "no sample after step 3: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert log(tmp_path).splitlines()[-1].endswith(said)

    monkeypatch.setattr(showing, "sample_after", lambda *_: "text")
    (tmp_path / "samples.md").mkdir()
    shown.forget_after(2)
    sample(shown, {"w": jax.numpy.ones(2)})
    before, after = log(tmp_path).splitlines()[-2:]
    assert "samples.md was left as it is: IsADirectoryError" in before
    assert "no sample after step 3: IsADirectoryError" in after


def test_curves_that_cannot_be_drawn_are_named_in_one_line(shown, tmp_path):
    (tmp_path / "loss.png").mkdir()
    assert not shown.plot([{"step": 1, "train_loss": 3.0}])
    assert "loss.png was not drawn: " in log(tmp_path).splitlines()[-1]


def test_a_page_that_cannot_be_written_is_named_in_one_line(shown, tmp_path):
    (tmp_path / "report.html").mkdir()
    assert shown.plot([{"step": 1, "train_loss": 3.0}])
    assert "report.html was not written: " in log(tmp_path).splitlines()[-1]


def test_a_process_of_several_that_fails_in_a_common_sample_saves_and_leaves(shown, monkeypatch):
    """The others wait for it in the middle of a text, so that it can agree on nothing with them."""

    class Elsewhere:
        is_fully_addressable = is_fully_replicated = False

    events = []

    def leave(error: BaseException) -> None:
        events.append(str(error)[:18])
        raise SystemExit

    monkeypatch.setattr(showing, "sample_after", out_of_memory)
    monkeypatch.setattr(showing, "exit_process", leave)
    with pytest.raises(SystemExit):
        sample(shown, {"w": Elsewhere()}, lambda: events.append("saved"))
    assert events == ["saved", "RESOURCE_EXHAUSTED"]


@pytest.fixture
def short(prepared) -> Config:
    """Six steps of the tiny model on the eight devices here; all is due at each second one."""
    fields = {
        "train.max_steps": STEPS, "train.eval_every_steps": 2, "train.sample_every_steps": 2,
        "train.save_every_steps": 2, "train.eval_tokens": 1024, "train.keep_latest": 9,
        "sample.prompt": "", "sample.max_new_tokens": 2,
    }  # fmt: skip
    return tiny_on(prepared, fields)


def saved(run: Path) -> list[int]:
    return sorted(int(p.name) for p in (run / "checkpoints").iterdir())


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


def test_curves_that_are_drawn_are_told(shown, tmp_path):
    assert shown.plot([{"step": 1, "train_loss": 3.0}])
    assert (tmp_path / "loss.png").is_file()
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_a_run_goes_on_without_samples_and_curves(short, tmp_path, monkeypatch):
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    assert fit.fit(short, plain) == 0
    for name in ("samples.md", "loss.png", "report.html"):
        (broken / name).mkdir(parents=True)
    shutil.copy(plain / "config.json", broken)
    texts = iter(["first", "second"])
    monkeypatch.setattr(showing, "sample_after", lambda *_: next(texts, None) or out_of_memory())
    assert fit.fit(short, broken) == 0
    assert saved(broken) == [2, 4, 6]
    assert rows(broken) == rows(plain)
    said = log(broken)
    assert said.count("no sample after step 2: IsADirectoryError") == 1
    assert said.count("no sample after step 6: RuntimeError: RESOURCE_EXHAUSTED") == 1
    assert said.count("loss.png was not drawn: IsADirectoryError") == 3
    assert "done: 6 steps; now try" in said
    assert f"done: 6 steps; curves in {plain / 'loss.png'}; now try" in log(plain)


HANG = """
import runpy, sys, time
import orbax.checkpoint as ocp
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.training.setup import Setup
def hang_at(step, owner, name):
    went_on, calls = getattr(owner, name), []
    def hang(*args, **options):
        calls.append(1)
        if len(calls) == step:
            time.sleep(600)
        return went_on(*args, **options)
    setattr(owner, name, hang)
hang_at({step}, {where})
sys.argv = ["gptjax.train", *sys.argv[1:]]
runpy.run_module("gptjax.train", run_name="__main__")
"""
OPENING = (1, "RunDir, 'check'")
IN_RESTORING = (1, "Checkpointer, 'restore'")
IN_THE_FIRST_STEP = (1, "Setup, 'train_steps'")
IN_A_STEP = (9, "Setup, 'train_steps'")
IN_A_SAVE = (2, "ocp.CheckpointManager, 'save'")
IN_THE_LAST_WAIT = (2, "Checkpointer, 'wait'")  # the first is that of the only `save`


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    ("where", "save_every", "what"),
    [
        (OPENING, 5, "the run's directory was not opened"),
        (IN_RESTORING, 5, "no checkpoint was restored"),
        (IN_THE_FIRST_STEP, 5, "nothing was finished"),
        (IN_A_STEP, 5, "nothing was finished"),
        (IN_A_SAVE, 5, "a checkpoint was not saved"),
        (IN_THE_LAST_WAIT, 0, "a checkpoint was not saved"),
    ],
)
def test_one_process_that_hangs_ends(prepared, tmp_path, where, save_every, what):
    script = HANG.format(step=where[0], where=where[1])
    words = [
        *(sys.executable, "-c", script, "--config", "tiny", "--run-dir", "run"),
        *("--data.path", prepared.directory, "--train.max-steps", 20, "--model.unroll", 1),
        *("--train.save-every-steps", save_every, "--train.stall-seconds", 8),
        *("--train.eval-every-steps", 0, "--train.sample-every-steps", 0),
    ]
    result = subprocess.run(
        list(map(str, words)),
        cwd=tmp_path,
        env=environment_on(2),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == StallError.exit_code, result.stderr
    assert f"error: {what} for " in result.stderr
    assert "in hang\n" in result.stderr  # the stack of the thread that does

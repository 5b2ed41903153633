"""An instruction run as a user sees it: it ends with results.json, and its answers end too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment_on, run_verb, without_speed

from gptjax.conversion.opening import load_run
from gptjax.evaluation.replay import mean_loss
from gptjax.generate import generate
from gptjax.runs.directory import RESULTS, RunDir
from gptjax.runs.metrics import read_rows
from gptjax.training.answering import PAGE
from gptjax.training.replaying import replay

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jan", "Kim", "Leo")
ANSWER = "Good day!"


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """A run that is over in seconds: one answer to everything, which also a held-out name gets."""
    records = [
        {"instruction": f"Greet {name}{mark}", "input": "", "output": ANSWER}
        for name in NAMES
        for mark in (".", "!", "?", " now.")
    ]
    path = tmp_path_factory.mktemp("examples") / "greetings.json"
    path.write_text(json.dumps(records))
    values = {
        "config": "instruct_alpaca", "run-dir": "run", "data.examples": path,
        "data.tokenizer": "bpe:300", "model.n-layer": 1, "model.n-embd": 32, "model.n-head": 2,
        "model.unroll": 1, "train.epochs": 12, "optim.peak-lr": 2e-2, "optim.warmup-steps": 2,
        "sample.max-new-tokens": 16, "train.save-every-steps": 12, "train.sample-every-steps": 30,
        "sample.prompt": "Greet Zoe.",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, options) -> Path:
    cwd = tmp_path_factory.mktemp("unbroken")
    result = run_verb("train", *options, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "run"


def test_responses_end_by_themselves_and_are_right(unbroken):
    results = json.loads((unbroken / RESULTS).read_text())
    assert results["responses"] == results["ended"] > 0
    assert results["exact_match"] == results["rouge_l"] == 1.0
    losses = [row["val_loss"] for row in read_rows(RunDir(unbroken).metrics) if "val_loss" in row]
    assert results["val_loss"] == min(losses) < losses[0] / 4
    page = (unbroken / PAGE).read_text()
    assert page.count("**Response**") == results["responses"]
    assert f"Greet Zoe.\n\n{ANSWER}\n" in RunDir(unbroken).samples.read_text()


def test_a_prompt_is_answered_and_can_be_continued_instead(unbroken, capsys):
    words = ["--run", str(unbroken), "--prompt", "Greet Zoe.", "--temperature", "0"]
    assert generate(words) == 0
    said = capsys.readouterr()
    assert said.out == f"Greet Zoe.\n\n{ANSWER}\n"
    assert "alpaca" in said.err
    assert generate([*words, "--raw", "--max-new-tokens", "4"]) == 0
    raw = capsys.readouterr()
    assert raw.out.startswith("Greet Zoe.")
    assert ANSWER not in raw.out
    assert "alpaca" not in raw.err


def test_a_killed_run_ends_as_an_unbroken_one(unbroken, options, tmp_path):
    command = [sys.executable, "-m", "gptjax.train", *options]
    metrics = tmp_path / "run" / "metrics.jsonl"
    for rows in (14, 40):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment_on(1), stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not (
            metrics.exists() and metrics.read_bytes().count(b"\n") >= rows
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    result = run_verb("train", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found, expected = (
        without_speed(json.loads((path / RESULTS).read_text()))
        for path in (tmp_path / "run", unbroken)
    )
    assert found == expected
    for name in (PAGE, "samples.md"):
        assert (tmp_path / "run" / name).read_bytes() == (unbroken / name).read_bytes()
    rows = [
        list(map(without_speed, read_rows(RunDir(path).metrics)))
        for path in (tmp_path / "run", unbroken)
    ]
    assert rows[0] == rows[1]


def test_a_complete_run_without_results_gets_them(unbroken, options, tmp_path):
    copy = shutil.copytree(unbroken, tmp_path / "run")
    (copy / RESULTS).unlink()
    result = run_verb("train", *options, "--instruct.test-responses=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((copy / RESULTS).read_text())["responses"] == 1


def test_a_replayed_step_has_its_conversations_and_its_loss(unbroken):
    run = load_run(f"{unbroken}@latest", averaged=False)
    recorded = read_rows(RunDir(unbroken).metrics)
    found = replay(run, run.step, 4, "float32")
    assert sum(row.weight for row in found) == recorded[run.step - 1]["tokens"]
    documents = [text for row in found for text in row.documents]
    assert all("Greet " in text and text.endswith(ANSWER) for text in documents)
    assert len({row.origin["example"] for row in found}) == len(documents) == len(found)
    assert mean_loss(found) < recorded[0]["train_loss"] / 2

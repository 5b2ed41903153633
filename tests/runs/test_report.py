"""A report names what runs, shows config and log, and nothing private; nothing makes it fail."""

import json
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.config import Config, to_json
from gptjax.config.presets import load_config
from gptjax.runs import report
from gptjax.runs.display import Display
from gptjax.runs.report import LAST, Privacy, last_messages, run_report
from gptjax.train import train


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    log = Display(path / "log.txt")
    log.table("weight decay", ("parameter", "shape"), [("wte", "2 x 3")])
    log.say("step 1/5  loss 2.5")
    log.say("sample after step 1:\n2026-01-02 03:04:05  secret words\nmore secret words")
    log.say("done: 5 steps")
    log.close()
    (path / "config.json").write_text(to_json(load_config("tiny")))
    return path


def test_it_has_versions_devices_the_run_s_config_and_messages_without_samples(run, capsys):
    assert train(["--report", "--run-dir", str(run)]) == 0
    shown = capsys.readouterr().out
    for word in ("python 3.", "jaxlib 0.", "orbax-checkpoint", "devices 8 x cpu (cpu)"):
        assert word in shown
    begin, end = shown.index("\n{") + 1, shown.index("\n}") + 2
    assert json.loads(shown[begin:end]) == json.loads(to_json(load_config("tiny")))
    assert "done: 5 steps" in shown
    assert "sample after step 1" in shown
    assert "secret words" not in shown


@pytest.mark.parametrize("flags", [[], ["--config", "tiny"], ["--run-dir", "nowhere"]])
def test_without_a_run_it_shows_the_config_as_given(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(["--report", *flags]) == 0
    shown = capsys.readouterr().out
    assert "no run" in shown
    assert json.loads(shown[shown.index("\n{") :])["train"]["batch_tokens"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_and_devices_that_do_not_start_are_said(run, monkeypatch):
    def fails() -> None:
        raise UserError("jax finds no device")

    (run / "config.json").write_text("{")
    monkeypatch.setattr(report, "find_devices", fails)
    lines = list(run_report(run, Config()))
    assert "no devices: jax finds no device" in lines
    assert any("config.json" in line for line in lines)
    assert lines[-1].endswith("done: 5 steps")


def test_only_the_last_messages_are_shown(tmp_path):
    log = Display(tmp_path / "log.txt")
    for number in range(LAST + 5):
        log.say(f"message {number}")
    log.close()
    found = last_messages(tmp_path / "log.txt")
    assert len(found) == LAST
    assert found[-1].endswith(f"message {LAST + 4}")
    assert last_messages(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/data", "~/data"),
        ("/home/annabel/data", "/home/annabel/data"),
        ("/scratch/ann/x, ann@node7.site.org, ann-2", "/scratch/USER/x, USER@HOST, USER-2"),
        ("coordinator node7:8476 at 10.0.0.7:8476", "coordinator HOST:8476 at ADDRESS:8476"),
        ("https://me:word@example.org/x", "https://***@example.org/x"),
        ("--flag=abcdef123456", "--flag=***"),
        ("planned 12 cannot", "planned 12 cannot"),
    ],
)
def test_names_homes_and_secrets_are_replaced(text, shown):
    environment = {"WANDB_API_KEY": "abcdef123456", "KEY_COUNT": "12", "PATH": "planned"}
    hide = Privacy(["/home/ann"], ["ann", "root"], ["node7.site.org", "node7"], environment)
    assert hide(text) == shown


def test_the_names_of_this_process_are_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/zoe")
    monkeypatch.setenv("USER", "zoe")
    monkeypatch.setattr("socket.gethostname", lambda: "m1.example")
    assert Privacy.of_this_process()("/home/zoe/x zoe m1 m1.example") == "~/x USER HOST HOST"

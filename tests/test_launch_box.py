"""launch/box.py: what a run asks for on a rented machine, and which checkpoint goes home."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from gptjax.base.errors import ConfigError, UserError
from gptjax.data.manifest import Manifest
from gptjax.runs.directory import RunDir
from gptjax.runs.integrity import INTEGRITY, verify
from gptjax.runs.ranking import Ranking


@pytest.fixture(scope="module")
def box():
    spec = importlib.util.spec_from_file_location("box", ROOT / "launch" / "box.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(box, tmp_path, monkeypatch, capsys):
    """The needs of a command line, in an empty checkout."""
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> list[str]:
        assert box.box(["needs", *words]) == 0
        return [line.removeprefix("gptjax:") for line in capsys.readouterr().out.splitlines()]

    return ask


MIXED = ("gpt2_124m", "--data.mixture", "data/web=3", "data/books=1:4", "--train.micro-batch", "1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tiny",), ["either\tdata/tiny"]),  # which the run makes itself
        (("gpt2_124m",), []),  # from the hub
        (("shakespeare",), ["either\tdata/shakespeare", "or\tdata/tinyshakespeare.txt"]),
        (("gpt2_124m", "--data.path", "data/mine"), ["either\tdata/mine", "or\tdata/mine"]),
        (("gpt2_124m", "--data.path", "/data/mine"), []),  # the user's own affair
        (MIXED, ["need\tdata/web", "need\tdata/books"]),
        (("spam_classify", "--data.examples", "a b.tsv"), ["need\ta b.tsv"]),
        (("tiny", "--train.init-from", "runs/x@best"), ["need\truns/x"]),
        (("tiny", "--train.init_from=runs/x@5", "--no-such-flag"), ["need\truns/x"]),
        (
            ("gpt2_124m", "--train.evaluate-on", "hellaswag=h.jsonl"),
            ["need\th.jsonl"],
        ),
    ],
)
def test_what_a_run_must_bring_from_home(asked, words, expected):
    assert asked(*words) == expected


def test_what_is_there_is_not_asked_for(asked, prepared: Manifest, tmp_path):
    shutil.copytree(prepared.directory, tmp_path / "data" / "mine")
    assert asked("tiny", "--data.path", "data/mine") == []
    assert asked("tiny", "--data.mixture", "data/mine=1", "data/more=1") == ["need\tdata/more"]


def test_a_mistake_in_the_flags_is_found_before_anything_is_sent(asked):
    with pytest.raises(ConfigError, match="unknown option --trian"):
        asked("tiny", "--trian.max-steps", "1")


@pytest.fixture
def run(trained_run: Path, tmp_path) -> RunDir:
    return RunDir(Path(shutil.copytree(trained_run, tmp_path / "run")))


def test_the_newest_and_the_best_checkpoint_go_home(box, run: RunDir):
    ranking = Ranking.of(run.checkpoints, run.steps())
    ranking.note(10, {"val_loss": 0.1})
    ranking.write(run.path)
    assert box.copy(run, set()) == [20, 10]
    leaving = run.path / box.LEAVING
    assert {p.name for p in (leaving / "checkpoints").iterdir()} == {"10", "20"}
    assert verify(leaving / "checkpoints" / "20") is None
    shutil.rmtree(run.checkpoints / "20")  # as a run does; what leaves stays
    assert verify(leaving / "checkpoints" / "20") is None
    assert {p.name for p in leaving.iterdir()} >= {"config.json", "metrics.jsonl", "tokenizer.json"}
    assert not (leaving / ".lock").exists()


def test_a_damaged_checkpoint_stays_and_half_a_row_too(box, run: RunDir, capsys):
    with (run.checkpoints / "20" / "config" / "metadata").open("ab") as file:
        file.write(b" ")
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole + b'{"step": 2')
    assert box.copy(run, set()) == [10]
    assert "the checkpoint of step 20 is damaged" in capsys.readouterr().err
    leaving = run.path / box.LEAVING
    assert (leaving / "metrics.jsonl").read_bytes() == whole
    assert [p.name for p in (leaving / "checkpoints").iterdir()] == ["10"]
    assert (run.checkpoints / "20" / INTEGRITY).exists()  # the run itself sets it aside


def test_what_is_at_home_is_named_and_not_sent(box, run: RunDir):
    chosen = box.copy(run, {20})
    assert chosen[0] == 20
    assert not (run.path / box.LEAVING / "checkpoints" / "20").exists()


def test_no_run_is_one_message(box, tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        box.copy(RunDir(tmp_path / "none"), set())

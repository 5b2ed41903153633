"""An impossible start is refused before anything compiles; the loop makes no implicit copies."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from labelled_files import as_tsv, config_for, messages
from small_runs import tiny_on

from gptjax.base.errors import UserError
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.training import fit, setup
from gptjax.training.program import Program
from gptjax.training.setup import Setup
from gptjax.training.start import how_to_go_on


@pytest.fixture
def automatic(prepared) -> Config:
    """The tiny config with a micro-batch that is found by compiling."""
    return tiny_on(prepared, {"train.micro_batch": "auto", "train.eval_every_steps": 0})


@pytest.fixture
def without_compiler(monkeypatch):
    """Whatever would be tried out or compiled ends the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(Program, "compile", refuse)
    monkeypatch.setattr(setup, "choose_attention", refuse)


def test_a_directory_that_another_process_holds_is_refused_uncompiled(
    automatic, tmp_path, without_compiler
):
    with RunDir(tmp_path).locked(), pytest.raises(UserError, match="another process is training"):
        fit.fit(automatic, tmp_path)
    with pytest.raises(AssertionError, match="compiled"):  # what is looked for does happen
        fit.fit(automatic, tmp_path)


def test_links_are_measured_only_once_the_directory_is_held(
    automatic, tmp_path, without_compiler, monkeypatch
):
    def measure(_: Config) -> list[str]:
        raise AssertionError("measured")

    monkeypatch.setattr(fit, "check_links", measure)
    with RunDir(tmp_path).locked(), pytest.raises(UserError, match="another process is training"):
        fit.fit(automatic, tmp_path)
    with pytest.raises(AssertionError, match="measured"):
        fit.fit(automatic, tmp_path)


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_directory_where_a_file_belongs_is_named(automatic, tmp_path, without_compiler, name):
    run, made = RunDir(tmp_path), Setup(automatic)
    run.begin(made.config, made.tokenizer)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a directory; expected a file"):
        fit.fit(automatic, tmp_path)


def test_another_tokenizer_than_that_of_the_run_is_noted(tmp_path):
    examples, run = tmp_path / "spam.tsv", RunDir(tmp_path / "run")
    examples.write_text(as_tsv(messages()))
    made = Setup(config_for(examples, tokenizer="bytes"))
    run.path.mkdir()
    run.begin(made.config, made.tokenizer, made.data.keep)
    (run.checkpoints / "1").mkdir(parents=True)
    assert Setup(config_for(examples, tokenizer="bytes"), run).notes() == []
    (note,) = Setup(config_for(examples, tokenizer="gpt2"), run).notes()
    assert note.startswith("note     no effect here: --data.tokenizer gpt2 (")


@pytest.mark.slow
def test_compilations_and_the_first_step_are_watched(automatic, tmp_path, monkeypatch):
    watched = {}

    class Noting(Watchdog):
        def __init__(self, *args: int):
            super().__init__(*args)
            noted.append(self)

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noting(*args: Any) -> Any:
            wait = noted[-1]._wait
            watched.setdefault(name, None if wait is None else wait.what)
            return original(*args)

        monkeypatch.setattr(owner, name, noting)

    noted: list[Noting] = []
    monkeypatch.setattr(fit, "Watchdog", Noting)
    note(Checkpointer, "restore")
    note(Program, "initial_state")
    note(Setup, "compile_steps")
    note(Setup, "train_steps")
    fields = {"micro_batch": 1, "max_steps": 1, "save_every_steps": 0, "preflight": "off"}
    train = dataclasses.replace(automatic.train, **fields)
    assert fit.fit(dataclasses.replace(automatic, train=train), tmp_path) == 0
    assert watched == {
        "restore": "no checkpoint was restored",
        "initial_state": "the run did not go on",
        "compile_steps": "a program was not compiled",
        "train_steps": "no step was finished",
    }


def test_a_run_of_other_settings_is_refused_uncompiled(automatic, tmp_path, without_compiler):
    run, made = RunDir(tmp_path), Setup(automatic)
    (run.checkpoints / "25").mkdir(parents=True)
    run.begin(made.config, made.tokenizer)
    wider = dataclasses.replace(automatic.model, n_embd=64)
    with pytest.raises(UserError, match=r"model\.n_embd +32 +-> 64"):
        fit.fit(dataclasses.replace(automatic, model=wider), tmp_path)


@pytest.mark.parametrize(
    ("epochs", "length"), [(2.0, "--train.epochs"), (1.9, "--train.max-steps")]
)
def test_a_complete_run_names_the_flag_that_decided_its_length(epochs, length):
    train = dataclasses.replace(Config().train, epochs=2, max_steps=40)
    words = how_to_go_on(Config(train=train), 40, epochs=epochs)
    assert f"with a larger {length} and" in words


def test_an_implicit_copy_inside_the_loop_is_an_error(automatic, tmp_path, monkeypatch):
    train_steps, steps = Setup.train_steps, []

    def careless(self: Setup, state: Any, call: Any) -> Any:
        steps.append(int(jax.device_get(state.step)))
        if len(steps) == 2:
            jax.numpy.add(np.ones(3, np.float32), 1)
        return train_steps(self, state, call)

    monkeypatch.setattr(Setup, "train_steps", careless)
    train = dataclasses.replace(automatic.train, micro_batch=1, max_steps=2, save_every_steps=0)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit.fit(dataclasses.replace(automatic, train=train), tmp_path)
    assert steps == [0, 1]

"""A start that cannot be is refused before anything compiles; the loop copies nothing unasked."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.config.presets import load_config
from gptjax.runs.directory import RunDir
from gptjax.training import loop, setup
from gptjax.training.program import Program
from gptjax.training.setup import Setup


@pytest.fixture
def automatic(prepared) -> Config:
    """The tiny config with a micro-batch that is found by compiling."""
    tiny = load_config("tiny")
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, path=str(prepared.directory), source=None),
        train=dataclasses.replace(tiny.train, micro_batch="auto", eval_every_steps=0),
    )


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
        loop.fit(automatic, tmp_path)
    with pytest.raises(AssertionError, match="compiled"):  # what is looked for does happen
        loop.fit(automatic, tmp_path)


def test_a_run_of_other_settings_is_refused_uncompiled(automatic, tmp_path, without_compiler):
    run, made = RunDir(tmp_path), Setup(automatic)
    (run.checkpoints / "25").mkdir(parents=True)
    run.begin(made.config, made.tokenizer)
    wider = dataclasses.replace(automatic.model, n_embd=64)
    with pytest.raises(UserError, match=r"model\.n_embd was 32, now 64"):
        loop.fit(dataclasses.replace(automatic, model=wider), tmp_path)


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
        loop.fit(dataclasses.replace(automatic, train=train), tmp_path)
    assert steps == [0, 1]

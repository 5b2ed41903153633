"""Work between steps that fails, again and again: no step is lost, and preflight finds it first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from faulty_runs import STEPS, Crash, crash, train_here
from killed_runs import checkpoints, ended, rows, start
from paired_runs import ended_pair, start_pair

from gptjax.base.errors import UserError
from gptjax.training import showing
from gptjax.training.measuring import Measuring
from gptjax.training.preflight import PreflightError
from gptjax.training.setup import Setup
from gptjax.training.trial import SCRATCH, Trial
from gptjax.training.validating import Validating

pytestmark = pytest.mark.slow
FAILS_AFTER = 12
MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nof 2 GB")
DUE = {
    "train.eval_every_steps": 6, "train.sample_every_steps": 6, "train.save_every_steps": 6,
    "train.keep_latest": 9, "sample.prompt": "", "sample.max_new_tokens": 2,
}  # fmt: skip
MEASURED = "val_", "perplexity/"


def after_a_while(went_on: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """What works so many times, and never again."""
    done: list[int] = []

    def work(*args: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) > calls:
            raise MEMORY
        return went_on(*args, **options)

    return work


def test_evaluations_samples_and_plots_that_fail_lose_no_step(prepared, tmp_path, report):
    """All of them, from the middle of the run to its end; also at the next start."""
    text = tmp_path / "some.txt"
    text.write_text("a text to measure " * 20)
    fields = DUE | {"train.evaluate_on": (f"perplexity={text}",)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_here(prepared, whole, fields=fields) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validating, "validate", after_a_while(Validating.validate, 2))
        patch.setattr(Measuring, "_on_one_device", after_a_while(Measuring._on_one_device, 2))
        patch.setattr(showing, "sample_after", after_a_while(showing.sample_after, 2))
        patch.setattr(showing, "plot_curves", after_a_while(showing.plot_curves, 2))
        assert train_here(prepared, broken, fields=fields) == 0
    assert checkpoints(broken) == {6, 12, 18, 24}
    said = (broken / "run" / "log.txt").read_text()
    for step in (18, STEPS):
        for what in ("validation", "measurement of evaluate_on", "sample"):
            line = (
                f"no {what} after step {step}: JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
            )
            assert said.count(f"{line}\n") == 1
    assert said.count("loss.png was not drawn: JaxRuntimeError") == 2
    for one, other in zip(rows(broken), rows(whole), strict=True):
        kept = {k: v for k, v in other.items() if not k.startswith(MEASURED)}
        assert one == (other if one["step"] <= FAILS_AFTER else kept)
    report("evaluation, measurement, sample and plot that raise", 8, 8)


RAISES = """
import gptjax.training.validating as validating
validate = validating.Validating.validate
def fail(self, state):
    import jax
    if int(state.step) > 4 and jax.process_index() == {process}:
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return validate(self, state)
validating.Validating.validate = fail
"""


@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize("process", [0, 1])
def test_one_of_two_processes_that_cannot_evaluate_ends_both_after_the_save(
    prepared, tmp_path, report, process
):
    flags = {
        "config": "tiny", "run-dir": "run", "data.path": prepared.directory, "model.unroll": 1,
        "train.max-steps": 12, "train.save-every-steps": 4, "train.eval-every-steps": 4,
        "train.eval-tokens": 512, "train.keep-latest": 9, "train.preflight": "off",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in flags.items()]
    codes, said = ended_pair(start_pair(words, tmp_path, RAISES.format(process=process)))
    assert codes[process] == 70, said
    assert codes[1 - process] != 0
    assert "RESOURCE_EXHAUSTED: Out of memory" in said
    assert checkpoints(tmp_path) == {4, 8}
    code, said = ended(start(words, tmp_path, 2))
    assert code == 0, said
    assert "after step 8" in said
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    report("one of two processes cannot evaluate")


def fail(*_: Any, **__: Any) -> Any:
    raise MEMORY


def make_directory(name: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, run: (run / name).mkdir(parents=True)


def out_of_memory(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, run: patch.setattr(owner, name, fail)


FOUND = {
    "samples.md": (make_directory("samples.md"), "samples.md is a directory; expected a file"),
    "loss.png": (make_directory("loss.png"), "loss.png is a directory; expected a file"),
    "plot": (out_of_memory(showing, "plot_curves"), "plot: out of memory"),
    "compilation": (out_of_memory(Setup, "compile_steps"), "lower --train.micro-batch"),
    "step": (out_of_memory(Trial, "_step"), "lower --train.micro-batch"),
    "validation": (out_of_memory(Validating, "rehearse"), "--train.eval-every-steps 0"),
    "evaluate_on": (out_of_memory(Measuring, "_on_one_device"), "no --train.evaluate-on"),
    "sample": (out_of_memory(showing, "sample_after"), "--train.sample-every-steps 0"),
}


@pytest.mark.parametrize("work", FOUND)
def test_what_would_fail_later_is_found_before_the_first_step(
    prepared, tmp_path, monkeypatch, report, work
):
    """Only what may fail here is compiled or done; the rest of a trial does nothing."""
    fault, words = FOUND[work]
    text, run = tmp_path / "some.txt", tmp_path / "run"
    text.write_text("a text to measure " * 20)
    monkeypatch.setattr(Setup, "compile_steps", lambda self, step: None)
    monkeypatch.setattr(Trial, "_step", draw)
    for owner, name in ((Validating, "rehearse"), (Measuring, "try_out")):
        if work not in ("validation", "evaluate_on"):
            monkeypatch.setattr(owner, name, lambda self, state: "")
    fault(monkeypatch, run)
    fields = DUE | {"train.preflight": "on", "train.evaluate_on": (f"perplexity={text}",)}
    if work == "evaluate_on":
        fields["train.eval_every_steps"] = 0
    if run.exists():
        (run / "config.json").write_text("{}")  # of a run that has begun, and saved nothing
    with pytest.raises(PreflightError, match=words) as caught:
        train_here(prepared, tmp_path, fields=fields)
    assert caught.value.exit_code == 1
    assert f"error: {caught.value}" in (run / "log.txt").read_text()
    assert checkpoints(tmp_path) == set()
    assert not (run / "metrics.jsonl").exists()
    assert not (run / SCRATCH).exists()
    report("work that would fail later, found by preflight")


def draw(self: Trial) -> str:
    self._state = self._setup.program.initial_state()
    return ""


def test_data_of_evaluate_on_that_are_not_there_end_the_start(prepared, tmp_path):
    fields = {"train.evaluate_on": (f"perplexity={tmp_path / 'gone.txt'}",)}
    with pytest.raises(UserError, match=r"train\.evaluate_on perplexity=.*gone\.txt"):
        train_here(prepared, tmp_path, fields=fields)
    assert checkpoints(tmp_path) == set()


def test_a_run_without_validations_that_is_killed_has_its_page(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(showing, "OLD_SECONDS", 0.0)
    train_fields = {"train.eval_every_steps": 0, "train.save_every_steps": 6}
    with pytest.raises(Crash):
        train_here(prepared, tmp_path, {13: crash}, train_fields)
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "loss.png").exists()

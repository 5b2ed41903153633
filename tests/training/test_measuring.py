"""Published tests in the middle of a run: their figures are those of the door, on any mesh."""

import json
from pathlib import Path

import jax
import pytest
from prepared_models import random_weights
from small_runs import Heard, tiny

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree
from gptjax.cluster.stop import StopRequest
from gptjax.config.names import TESTS
from gptjax.conversion.opening import load_run
from gptjax.evaluate import evaluate
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.training import fit
from gptjax.training.measuring import Measuring
from gptjax.training.setup import Setup

QUICK = {"train.batch_tokens": 512, "train.micro_batch": 1, "optim.warmup_steps": 1}


def question(number: int, label: int) -> str:
    choices = [f"sentence {number} of it", "nothing", "a much longer one that goes on"]
    return json.dumps({"context": f"Question {number}", "choices": choices, "label": label})


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Data of two tests."""
    directory = tmp_path_factory.mktemp("tests")
    (directory / "q.jsonl").write_text("".join(question(i, i % 3) + "\n" for i in range(20)))
    lines = [json.dumps({"text": f"one two three {i} four"}) + "\n" for i in range(9)]
    (directory / "l.jsonl").write_text("".join(lines))
    return {"choices": directory / "q.jsonl", "lambada": directory / "l.jsonl"}


@pytest.fixture(scope="module")
def params(prepared):
    """Parameters of the tiny model."""
    model = Setup(tiny(prepared, QUICK)).config.model
    return jax.tree.map(jax.numpy.asarray, as_tree(random_weights(model).arrays))


def measuring(prepared, files, fields=None, stop=None):
    """The tests of a run, where it has its parameters, what the user hears, counted heartbeats."""
    tests = tuple(f"{name}={file}" for name, file in files.items())
    made = Setup(tiny(prepared, {**QUICK, "train.evaluate_on": tests, **(fields or {})}))
    heard, beats = Heard(), []
    stop = StopRequest() if stop is None else stop
    tool = Measuring(made, stop, lambda: beats.append(1), heard)  # pyright: ignore
    return tool, made.program.places.params, heard, beats


def test_every_test_of_a_config_is_a_row_of_the_table():
    of_fine_tuning = {"labels", "responses"}  # measured at the end, on the run's own test split
    assert set(TESTS) == set(EVALUATIONS) - of_fine_tuning


@pytest.mark.slow
def test_divided_parameters_give_the_figures_of_whole_ones(prepared, files, params):
    tool, _, _, beats = measuring(prepared, files, {"train.evaluate_on_limit": 6})
    tool.rehearse()
    row = tool.measure(3, params)
    assert (row["choices/items"], row["lambada/items"]) == (6, 6)
    assert tool.is_in(row)
    assert not tool.is_in({"choices/acc": 1.0})
    assert len(beats) == 3 * 6 // 16
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2, "train.evaluate_on_limit": 6}
    divided, places, _, _ = measuring(prepared, files, mesh)
    assert divided.measure(3, jax.device_put(params, places)) == pytest.approx(row, rel=1e-5)


def test_a_stop_request_ends_a_test_between_batches(prepared, files, params):
    class AfterOneBatch(StopRequest):
        """Stops when it is asked for the first time."""

        asked = False

        def agree(self) -> None:
            self.asked = True

        def __bool__(self) -> bool:
            return self.asked

    tool, _, _, beats = measuring(prepared, files, stop=AfterOneBatch())
    assert tool.measure(3, params) == {}
    assert len(beats) == 1


def test_a_file_that_goes_during_a_run_is_named_and_the_others_are_measured(
    prepared, files, params, tmp_path
):
    gone = tmp_path / "gone.jsonl"
    tool, _, heard, _ = measuring(prepared, files | {"choices": gone})
    row = tool.measure(3, params)
    assert "lambada/acc" in row
    assert "choices/acc" not in row
    (line,) = heard.lines
    assert line.startswith("no choices after step 3: ")


@pytest.mark.parametrize("content", [None, "{}\n", "[1,"])
def test_a_broken_file_is_named_before_anything_is_scored(prepared, files, tmp_path, content):
    broken = tmp_path / "broken.jsonl"
    if content is not None:
        broken.write_text(content)
    tool, _, _, beats = measuring(prepared, files | {"choices": broken})
    with pytest.raises(UserError, match=rf"train\.evaluate_on choices={broken}: .*broken\.jsonl"):
        tool.rehearse()
    assert beats == []


@pytest.mark.slow
def test_the_figures_of_a_run_are_those_of_evaluate(prepared, files, tmp_path):
    tests = tuple(f"{name}={file}" for name, file in files.items())
    fields = {
        "train.evaluate_on": tests, "train.max_steps": 4, "train.evaluate_on_every_steps": 2,
        "train.save_every_steps": 2, "optim.ema_decay": 0.5,
    }  # fmt: skip
    assert fit.fit(tiny(prepared, {**QUICK, **fields}), tmp_path / "run") == 0
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert ["choices/acc" in row for row in rows] == [False, True, False, True]
    for name, file in files.items():
        out = tmp_path / f"{name}.json"
        run = f"{tmp_path}/run@4"
        assert evaluate(["--run", run, "--on", name, "--data", str(file), "--json", str(out)]) == 0
        figures = json.loads(out.read_text())
        shared = [key for key in rows[-1] if key.startswith(f"{name}/")]
        assert len(shared) >= 5
        for key in shared:
            assert rows[-1][key] == pytest.approx(figures[key.partition("/")[2]], rel=1e-5)
    assert len(jax.tree.leaves(load_run(run).params)) == 16


@pytest.mark.slow
def test_a_test_that_was_cut_short_is_done_at_the_next_start(prepared, files, tmp_path):
    tests = tuple(f"{name}={file}" for name, file in files.items())
    fields = {"train.max_steps": 2}
    assert fit.fit(tiny(prepared, {**QUICK, **fields}), tmp_path / "run") == 0
    again = {**fields, "train.evaluate_on": tests}
    assert fit.fit(tiny(prepared, {**QUICK, **again}), tmp_path / "run") == 0
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert ["choices/acc" in row for row in rows] == [False, True]

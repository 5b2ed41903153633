"""Runs whose losses spike: steps are refused, or the run goes back and reads other data.

Some rows of the data are random bytes that the text does not have.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import EXHAUSTIVE, without_speed
from small_runs import tiny

from gptjax.base.errors import UserError
from gptjax.cluster.compiler import enable_compilation_cache
from gptjax.data.loader import StepSource
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.incidents import INCIDENTS, read_incidents
from gptjax.runs.metrics import MetricsLog
from gptjax.training import fit, rolling_back, spikes
from gptjax.training.saving import Saving

pytestmark = pytest.mark.slow
ROWS = 8  # of a step
FIELDS = {
    "train.max_steps": 50, "train.save_every_steps": 10, "train.batch_tokens": 512,
    "train.preflight": "off",
}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of a process at this moment."""


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


def cursor(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / str(step) / "cursor" / "metadata").read_text())


spoilt = range(0)  # steps whose rows, as they lie in the data, are random now
read: list[int] = []  # the place of every batch that was read


@pytest.fixture(scope="module", autouse=True)
def spoiling(tmp_path_factory) -> Iterator[None]:
    whole = StepSource.__getitem__

    def batch(source: StepSource, step: int) -> dict[str, np.ndarray]:
        found, place = whole(source, step), source.rows_before(step)
        read.append(place)
        if place // ROWS + 1 in spoilt:
            draw = np.random.default_rng(place)
            return {"tokens": draw.integers(128, 256, found["tokens"].shape, np.int32)}
        return found

    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes, "STEPS", 12)
        patch.setattr(StepSource, "__getitem__", batch)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        enable_compilation_cache()
        yield
    jax.config.update("jax_compilation_cache_dir", before)


def spoil(steps: range) -> None:
    global spoilt
    spoilt = steps


def test_a_spike_is_refused_and_a_resumed_run_refuses_the_same(prepared, tmp_path):
    spoil(range(33, 34))
    config, run = tiny(prepared, {**FIELDS, "train.skip_zscore": 4.0}), tmp_path / "run"
    assert fit.fit(config, run) == 0
    found = rows(run)
    assert [row["step"] for row in found if "skipped" in row] == [33]
    assert found[32]["skipped"] == "spike"
    assert "grad_norm" not in found[32]
    assert found[33]["train_loss"] < found[32]["train_loss"] - 0.5
    assert found[33]["learning_rate"] == pytest.approx(found[32]["learning_rate"], rel=1e-6)
    log = (run / "log.txt").read_text()
    assert "1 step was skipped: loss far above its mean in step 33" in log
    kept = cursor(run, 50)
    assert kept["losses"][0] == 49
    unskipped = tmp_path / "unskipped"
    assert fit.fit(tiny(prepared, FIELDS), unskipped) == 0
    plain = rows(unskipped)
    assert plain[:33] == [*found[:32], plain[32]]
    assert plain[34]["train_loss"] != found[34]["train_loss"]
    assert "losses" not in cursor(unskipped, 50)

    for step in (50, 40):
        (run / "checkpoints" / str(step)).rename(tmp_path / f"lost{step}")
    (tmp_path / "lost40").rename(run / "checkpoints" / "40")
    assert fit.fit(config, run) == 0
    assert rows(run) == found
    assert cursor(run, 50) == kept


def test_the_field_may_be_turned_on_and_off_when_a_run_resumes(prepared, tmp_path):
    spoil(range(33, 34))
    run = tmp_path / "run"
    for steps, zscore in ((20, None), (40, 4.0), (50, None)):
        fields = {**FIELDS, "train.max_steps": steps, "train.skip_zscore": zscore}
        assert fit.fit(tiny(prepared, fields), run) == 0
        assert ("losses" in cursor(run, steps)) == (zscore is not None)
    assert [row["step"] for row in rows(run) if "skipped" in row] == [33]


ROLLBACK: dict[str, Any] = {**FIELDS, "train.rollback_zscore": 2.0}


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory) -> Path:
    spoil(range(33, 39))
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert fit.fit(tiny(prepared, ROLLBACK), run) == 0
    return run


def test_a_rise_goes_back_and_passes_over_its_data(unbroken):
    run, found = unbroken, rows(unbroken)
    assert [row["step"] for row in found] == list(range(1, 51))
    (incident,) = read_incidents(run)
    assert (incident["steps"], incident["to"], incident["rows"]) == ([33, 37], 30, 37 * ROWS)
    assert cursor(run, 50)["rows"] == (50 + 7) * ROWS
    assert cursor(run, 50)["rollbacks"] == 1
    log = (run / "log.txt").read_text()
    assert "the loss has stayed above" in log
    assert "going back to step 30, and on from there with other data: 1 of 3 times" in log
    assert log.count("compiling the train step") == 1
    assert max(row["train_loss"] for row in found[32:]) < found[28]["train_loss"] + 0.5
    assert max(read) >= (49 + 7) * ROWS  # the whole place has moved
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["seconds"]["lost_progress"] > 0


@pytest.mark.parametrize(
    ("owner", "name", "before", "call"),
    [
        (Checkpointer, "go_back", True, 1),
        pytest.param(Checkpointer, "go_back", False, 1, marks=EXHAUSTIVE),
        (MetricsLog, "cut", True, 1),
        pytest.param(MetricsLog, "append", True, 38, marks=EXHAUSTIVE),
        (Saving, "save", True, 4),
    ],
    ids=["decided", "set aside", "restored", "first row", "first save"],
)  # fmt: skip
def test_a_run_that_is_killed_while_it_goes_back_ends_as_an_unbroken_one(
    prepared, tmp_path, monkeypatch, unbroken, owner, name, before, call
):
    spoil(range(33, 39))
    whole, calls = getattr(owner, name), 0

    def kill(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = None if calls == call and before else whole(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    run, config = tmp_path / "run", tiny(prepared, ROLLBACK)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            fit.fit(config, run)
    assert len(read_incidents(run)) == 1
    assert fit.fit(config, run) == 0
    assert rows(run) == rows(unbroken)
    assert read_incidents(run) == read_incidents(unbroken)
    assert cursor(run, 50) == cursor(unbroken, 50)


def test_a_run_goes_back_only_so_often(prepared, tmp_path, monkeypatch):
    spoil(range(33, 90))
    monkeypatch.setattr(rolling_back, "MOST", 1)
    run, config = tmp_path / "run", tiny(prepared, ROLLBACK)
    with pytest.raises(UserError, match="went back 1 times already") as caught:
        fit.fit(config, run)
    assert "The checkpoint of step 20 is earlier" in str(caught.value)
    kinds = [(incident["kind"], incident["steps"]) for incident in read_incidents(run)]
    assert kinds == [("rollback", [33, 37]), ("rise", [31, 35])]
    (run / INCIDENTS).write_text("{")
    with pytest.raises(UserError, match=r"incidents\.json cannot be read"):
        fit.fit(config, run)


def test_without_a_checkpoint_from_before_the_run_goes_on(prepared, tmp_path):
    spoil(range(33, 39))
    run = tmp_path / "run"
    assert fit.fit(tiny(prepared, {**ROLLBACK, "train.save_every_steps": 0}), run) == 0
    assert "no checkpoint from before that, so the run goes on" in (run / "log.txt").read_text()
    assert not (run / INCIDENTS).exists()

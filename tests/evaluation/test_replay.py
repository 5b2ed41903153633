"""A replayed step has the rows that the step read, with the losses that it recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import ConfigError, UserError
from gptjax.config.batches import BatchSchedule
from gptjax.config.run_batches import RunBatches
from gptjax.data.packing import Item, packed_row
from gptjax.data.shards import open_shard
from gptjax.evaluate import evaluate
from gptjax.evaluation import replay
from gptjax.evaluation.options import EvaluateCommand, check_flags
from gptjax.evaluation.replay import ReplayedRow, as_lines, batches_of, documents_of
from gptjax.runs.directory import RunDir
from gptjax.runs.incidents import write_incidents
from gptjax.runs.metrics import read_rows
from gptjax.tokenizers.registry import make_tokenizer

BYTES = make_tokenizer("bytes")


def ids(text: str) -> np.ndarray:
    return np.array([BYTES.eot_id if c == "|" else ord(c) for c in text], np.int32)


def test_documents_of_a_window_begin_at_the_end_of_text():
    assert documents_of({"tokens": ids("end|whole one|be")}, BYTES) == ["end", "whole one", "be"]
    assert documents_of({"tokens": ids("|a")}, BYTES) == ["a"]


def test_documents_of_packed_and_padded_rows_and_of_pairs_have_no_padding():
    items = [Item(ids("first"), np.float32([0, 1, 1, 1])), Item(ids("two"), np.float32([1, 1]))]
    assert documents_of(packed_row(items, 12), BYTES) == ["first", "two"]
    padded = {"tokens": np.zeros(9, np.int32), "weights": np.zeros(8, np.float32)}
    padded["tokens"][:3], padded["weights"][1] = ids("abc"), 1.0
    assert documents_of(padded, BYTES) == ["abc"]
    pair = {"tokens": np.stack([ids("abc"), ids("xyz")]), "lengths": np.array([2, 3])}
    assert documents_of({**pair, "weights": np.float32(1)}, BYTES) == ["ab", "xyz"]


def test_lines_are_cut_to_a_width_and_stay_single_lines():
    row = ReplayedRow(1234, 2.5, 8.0, {"example": 7}, ["a\nb" * 40, "short"])
    first, second, third = as_lines([row], 40)
    assert first == "loss 2.5000  row 1,234  training example 7"
    assert len(second) == 40
    assert second.startswith("    a\\nba")
    assert third == "    short"


def replayed(run: object, step: int, out: Path) -> dict:
    words = ["--run", run, "--replay", step, "--json", out, "--no-averaged", "--limit", 2]
    assert evaluate([str(word) for word in words]) == 0
    return json.loads(out.read_text())


def test_the_checkpoint_before_a_step_gives_the_loss_that_the_step_recorded(
    trained_run, prepared, tmp_path, capsys
):
    found = replayed(f"{trained_run}@10", 11, tmp_path / "step.json")
    recorded = read_rows(RunDir(trained_run).metrics)[10]
    assert found["loss"] == pytest.approx(recorded["train_loss"], rel=1e-4)
    rows = found["rows"]
    assert sum(row["weight"] for row in rows) == recorded["tokens"]
    assert sorted(row["row"] for row in rows) == list(range(10 * len(rows), 11 * len(rows)))
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    config = RunDir(trained_run).read_config()
    for row in rows:
        info = next(s for s in prepared.splits["train"].shards if s.name in row["shard"])
        shard = open_shard(Path(row["shard"]), info.tokens, prepared.dtype)
        text = BYTES.decode(shard[row["offset"] :][: config.context + 1].tolist())
        assert "".join(row["documents"]).startswith(text.rstrip("�"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"step 11: {len(rows)} rows, loss {found['loss']:.4f} by the")
    assert len([line for line in printed if line.startswith("loss ")]) == 2


def test_a_step_that_was_not_done_and_flags_of_measurements_are_refused(trained_run, tmp_path):
    with pytest.raises(UserError, match="has done 20 steps, so there is no step 21"):
        replayed(trained_run, 21, tmp_path / "step.json")
    with pytest.raises(ConfigError) as caught:
        check_flags(EvaluateCommand(replay=0, data="x", stride=3), is_harness=False)
    assert len(caught.value.problems) == 3


def test_rows_are_those_after_a_change_of_batch_and_after_data_that_was_passed_over(
    tmp_path, monkeypatch
):
    batches = RunBatches.of(BatchSchedule(4, 4, 0)).continued(10, 60, BatchSchedule(8, 8, 0))
    cursor = {"step": 20, "data": "x", "batches": batches.as_lists()}
    run = RunDir(tmp_path)
    for step in (10, 20):
        (run.checkpoints / str(step)).mkdir(parents=True)
    monkeypatch.setattr(replay, "signed_content", lambda *_: json.dumps(cursor).encode())
    found, _ = batches_of(run, None, 15)  # pyright: ignore[reportArgumentType]
    assert [(found.rows_before(s), found.rows(s)) for s in (9, 10, 19)] == [
        (36, 4), (60, 8), (132, 8)
    ]  # fmt: skip
    write_incidents(run.path, [{"kind": "rollback", "steps": [25, 29], "to": 20, "rows": 500}])
    found, _ = batches_of(run, None, 15)  # pyright: ignore[reportArgumentType]
    assert (found.rows_before(19), found.rows_before(20)) == (132, 500)
    monkeypatch.setattr(replay, "signed_content", lambda *_: None)
    with pytest.raises(UserError, match=r"no checkpoint of .* can be read"):
        batches_of(run, None, 15)  # pyright: ignore[reportArgumentType]

"""A run may resume with another batch: it goes on in the data where it was, bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import without_speed
from small_runs import Heard, tiny_on

from gptjax.cluster.phases import Phases
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config
from gptjax.config.batches import BatchSchedule, batch_schedule
from gptjax.config.run_batches import RunBatches
from gptjax.runs.checkpoint import Checkpointer, Restored
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import BATCHES, ROWS
from gptjax.training.consequences import batch_change, course_change
from gptjax.training.fit import fit
from gptjax.training.setup import Setup
from gptjax.training.start import restore_or_start
from gptjax.training.state import items_of, state_of

SEEN = 6  # steps before the change
OLD = {"train.batch_tokens": 512, "train.micro_batch": 4, "train.max_steps": SEEN,
       "train.save_every_steps": 3, "train.eval_every_steps": 0, "train.sample_every_steps": 0,
       "optim.decay_steps": 12, "optim.warmup_steps": 2, "model.resid_pdrop": 0.1,
       "train.preflight": "off"}  # fmt: skip
NEW = {**OLD, "train.batch_tokens": 1024, "train.max_steps": 12}


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


@pytest.mark.slow
def test_a_run_with_another_batch_is_the_one_made_by_hand_and_may_be_broken(
    prepared, tmp_path, one_compilation_for_all
):
    def config(**fields: Any) -> Config:
        return tiny_on(prepared, NEW | fields)

    assert fit(tiny_on(prepared, OLD), tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "broken")
    shutil.copytree(tmp_path / "run", tmp_path / "by hand")
    assert fit(config(), tmp_path / "run") == 0
    for steps in (9, 12):
        assert fit(config(**{"train.max_steps": steps}), tmp_path / "broken") == 0
    assert rows(tmp_path / "broken") == rows(tmp_path / "run")
    assert [row["tokens"] for row in rows(tmp_path / "run")] == [512] * SEEN + [1024] * 6
    logged = (tmp_path / "run" / "log.txt").read_text()
    assert "the batch of step 7 was 512 tokens, now it is 1,024; 12 steps read 9,216" in logged

    made, run = Setup(config()), RunDir(tmp_path / "by hand")
    abstract = made.program.abstract_state()
    checkpointer = Checkpointer(run.checkpoints)
    restored = checkpointer.restore(items_of(abstract, made.program.trained), print)
    checkpointer.close()
    assert restored is not None
    state, order = (
        state_of(*restored[:2], abstract, None),
        made.data.shuffled(made.config.train.seed),
    )
    losses, context = [], made.config.context
    for place in range(SEEN * 512 // context, 9216 // context, 1024 // context):
        batch = order.batch(range(place, place + 1024 // context), [])
        state, metrics = made.train_steps(state, made.feed.training([batch]))
        losses.append(float(metrics["loss"]))
    assert losses == [row["train_loss"] for row in rows(tmp_path / "run")[SEEN:]]


@pytest.mark.parametrize("kind", ["this version", "without batches", "without its config"])
def test_the_place_in_the_data_is_that_of_the_checkpoint_not_of_the_last_start(
    kind, prepared, tmp_path
):
    """As if a start with the new batch had been killed before its first save."""
    old, made, run = tiny_on(prepared, OLD), Setup(tiny_on(prepared, NEW)), RunDir(tmp_path)
    run.begin(old if kind == "without its config" else made.config, made.tokenizer)
    cursor: dict[str, Any] = made.data_identity(SEEN)
    if kind == "this version":
        cursor |= {ROWS: 48, BATCHES: RunBatches.of(batch_schedule(old)).as_lists()}
    if kind == "without batches":
        own = run.checkpoints / str(SEEN) / "config" / "metadata"
        own.parent.mkdir(parents=True)
        own.write_text(json.dumps(dataclasses.asdict(old)))
    state = made.program.initial_state()._replace(step=np.int32(SEEN))
    restored = Restored(SEEN, items_of(state), cursor)
    checkpointer = cast(Any, SimpleNamespace(restore=lambda *_: restored))
    heard = Heard()
    restore_or_start(made, checkpointer, run, cast(Any, heard), Phases(Watchdog(0)))
    per_step = 512 // made.config.context
    assert made.source.rows_before(SEEN) == SEEN * per_step
    assert made.source.rows_before(SEEN + 1) == (SEEN + 2) * per_step
    assert made.data.epochs(SEEN + 1) == pytest.approx(made.data.epochs(SEEN) * 8 / 6)
    assert any("the batch of step 7 was 512 tokens" in line for line in heard.lines)


def test_another_batch_and_another_length_are_told_in_numbers():
    config = Config()
    train = dataclasses.replace(config.train, max_steps=100)
    config = dataclasses.replace(config, train=train)
    small = RunBatches.of(BatchSchedule(4, 4, 0))
    large = small.continued(10, 40, BatchSchedule(16, 16, 0))
    told = batch_change(small, large, config, 10)
    assert told is not None
    assert told.startswith(
        "the batch of step 11 was 4,096 tokens, now it is 16,384; 100 steps read"
    )
    assert "1,515,520 tokens in all, with the old batch 409,600" in told
    assert batch_change(small, small.continued(10, 60), config, 10) is None
    longer = dataclasses.replace(config, train=dataclasses.replace(train, max_steps=20_000))
    optim = dataclasses.replace(config.optim, warmup_steps=10)
    old, new = (dataclasses.replace(c, optim=optim) for c in (config, longer))
    told = course_change(old, new, 90, 90)
    assert told is not None
    assert (
        "step 91 was 7.628e-05, now it is 0.0006, 7.865 times as high; its schedule ended" in told
    )

"""Fields that change how a step is computed, seen from the losses of whole runs.

All of it happens in this process, on its eight devices; what a user types is test_train's.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import without_speed
from small_runs import announced, tiny, trained

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.tree import named_leaves
from gptjax.cluster.devices import HEADROOM
from gptjax.config import DataConfig
from gptjax.evaluation.perplexity import evaluate_parts
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.training import autotune, fit
from gptjax.training.optimizer import averaged_parameters
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState, items_of, state_of


def rows(run: Path) -> list[dict]:
    """Rows of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


def saved_state(made: Setup, run: Path) -> TrainState:
    """The newest checkpoint of a run."""
    checkpointer = Checkpointer(RunDir(run).checkpoints, read_only=True)
    abstract = made.program.abstract_state()
    restored = checkpointer.restore(items_of(abstract), lambda _: None)
    checkpointer.close()
    assert restored is not None
    return state_of(restored.step, restored.items, abstract)


def test_a_run_on_a_gpu_records_its_attention_and_nothing_else(prepared, monkeypatch):
    setup = Setup(tiny(prepared, {}))
    config = setup.config
    assert setup.recorded == config
    setup.__dict__["_attention"] = ("pallas", "timed")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = dataclasses.replace(config.model, attention="pallas")
    assert setup.recorded == dataclasses.replace(config, model=model)


BIG = {"train.batch_tokens": 4096, "train.max_steps": 4}  # 8 sequences on each of 8 devices


@pytest.mark.slow
def test_an_automatic_micro_batch_is_the_largest_that_fits_and_changes_no_loss(
    prepared, monkeypatch
):
    needs, memory_needed = [], autotune.memory_needed

    def recorded(compiled: jax.stages.Compiled) -> int:
        needs.append(memory_needed(compiled))
        return needs[-1]

    monkeypatch.setattr(autotune, "memory_needed", recorded)
    auto = tiny(prepared, {**BIG, "train.micro_batch": "auto"})
    roomy = Setup(auto)
    assert (roomy.layout.micro_batch, roomy.layout.micro_steps) == (8, 1)
    assert "1 micro-steps x 8 devices x 8 sequences x 64 tokens = 4,096 tokens" in announced(roomy)
    assert "(auto: the largest that fits: 0.0" in announced(roomy)
    assert len(needs) == 3  # of 1, 2 and 8
    assert sorted(needs) == needs

    monkeypatch.setattr(autotune, "memory_limit", lambda: int(needs[1] / HEADROOM) + 2)
    tight = Setup(auto)
    assert (tight.layout.micro_batch, tight.layout.micro_steps) == (2, 4)
    monkeypatch.setattr(autotune, "memory_limit", lambda: int(needs[0] / HEADROOM) - 2)
    with pytest.raises(UserError, match="a single sequence needs"):
        Setup(auto).layout  # noqa: B018

    given = Setup(tiny(prepared, {**BIG, "train.micro_batch": 4}))
    assert "auto" not in announced(given).split("batch    ")[1].split("steps    ")[0]
    expected, _ = trained(given, 4)
    for found in (roomy, tight):
        np.testing.assert_allclose(trained(found, 4)[0], expected, rtol=1e-5)


def test_an_automatic_micro_batch_needs_a_device_that_tells_its_memory(prepared, monkeypatch):
    monkeypatch.setattr(autotune, "memory_limit", lambda: None)
    with pytest.raises(UserError, match=r"give a number as --train\.micro-batch"):
        Setup(tiny(prepared, {"train.micro_batch": "auto"})).layout  # noqa: B018


def test_a_first_batch_that_does_not_divide_among_the_devices_is_refused(prepared):
    ramp = {"train.ramp_from_tokens": 256, "train.ramp_steps": 4, "train.micro_batch": 1}
    with pytest.raises(ConfigError, match=r"train\.ramp_from_tokens 256 is 4 sequences") as caught:
        Setup(tiny(prepared, {**BIG, **ramp}))
    suggested = int(str(caught.value).rsplit("try ", 1)[1])
    assert suggested == 512


@pytest.mark.slow
def test_a_ramp_is_announced_compiled_size_by_size_and_trains(prepared):
    ramp = {"train.ramp_from_tokens": 1024, "train.ramp_steps": 4, "train.max_steps": 6}
    made = Setup(tiny(prepared, {**BIG, **ramp, "train.micro_batch": 2}))
    text = announced(made)
    assert "(grows in stages over the first 4 steps: 1,024, 2,048, 4,096)" in text
    assert f"steps    0 to 6; {2 * 1024 + 2 * 2048 + 2 * 4096:,} tokens in all" in text
    for step, batch_tokens in enumerate([1024, 1024, 2048, 2048, 4096, 4096]):
        assert made.source[step]["tokens"].shape == (batch_tokens // 64, 65)
        call = made.feed.training([made.source[step]])
        micro_steps = call.batch["tokens"].shape[0]
        assert micro_steps == batch_tokens // (64 * 8 * 2)
    losses, state = trained(made, 6)
    assert losses[-1] < losses[0] - 0.1
    assert int(state.step) == 6


FLOAT16 = {"model.dtype": "float16"}


@pytest.mark.slow
def test_float16_trains_and_its_loss_scale_is_kept_with_the_run(prepared, tmp_path):
    config = tiny(prepared, {**FLOAT16, "train.max_steps": 30})
    assert fit.fit(config, tmp_path / "run") == 0
    losses = [row["train_loss"] for row in rows(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(257), rel=0.03)
    assert losses[-1] < losses[0] - 1.0
    assert all("grad_norm" in row for row in rows(tmp_path / "run"))  # nothing was skipped
    state = saved_state(Setup(config), tmp_path / "run")
    assert float(optax.tree.get(state.opt_state, "loss_scale")) == 2.0**15
    assert int(optax.tree.get(state.opt_state, "good_updates")) == 30
    expected, _ = trained(Setup(tiny(prepared, {"train.max_steps": 30})), 30)
    np.testing.assert_allclose(losses, expected, rtol=2e-2)


@pytest.mark.slow
def test_an_overflow_in_float16_is_skipped_and_halves_the_scale(prepared, tmp_path):
    """One step with an absurd learning rate, after which no weight is a float16 any more."""
    absurd = {"optim.peak_lr": 1e6, "optim.warmup_steps": 0, "train.max_steps": 4}
    config = tiny(prepared, {**FLOAT16, **absurd})
    assert fit.fit(config, tmp_path / "run") == 0
    log = (tmp_path / "run/log.txt").read_text()
    for step in (2, 3, 4):
        assert f"step {step} was skipped: its gradients are not finite" in log
    state = saved_state(Setup(config), tmp_path / "run")
    assert float(optax.tree.get(state.opt_state, "loss_scale")) == 2.0**12
    assert int(optax.tree.get(state.opt_state, "notfinite_count")) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_moments_in_bfloat16_learn_as_float32_does(prepared):
    final = {}
    for dtype in ("float32", "bfloat16"):
        fields = {"optim.moments_dtype": dtype, "train.max_steps": 60}
        losses, state = trained(Setup(tiny(prepared, fields)), 60)
        moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
        assert {str(m.dtype) for m in moments} == {dtype}
        final[dtype] = float(np.mean(losses[-5:]))
    print(final)
    assert final["bfloat16"] != final["float32"]
    assert final["bfloat16"] == pytest.approx(final["float32"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"optim.name": "adamw"},
        {"optim.name": "lion", "optim.peak_lr": 5e-4},
        {"optim.name": "adafactor"},
        {"optim.name": "muon"},
        {"optim.schedule": "wsd", "optim.cooldown_fraction": 0.5, "optim.ema_decay": 0.9},
        {"optim.moments_dtype": "bfloat16"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_run_without_its_last_checkpoint_repeats_its_last_steps(prepared, tmp_path, fields):
    every = {"train.max_steps": 5, "train.save_every_steps": 3, "optim.warmup_steps": 1}
    config, run = tiny(prepared, {**every, **fields}), tmp_path / "run"
    assert fit.fit(config, run) == 0
    made, expected = Setup(config), rows(run)
    assert expected[-1]["train_loss"] < expected[0]["train_loss"]
    unbroken = named_leaves(saved_state(made, run))
    shutil.rmtree(run / "checkpoints" / "5")
    assert int(saved_state(made, run).step) == 3
    assert fit.fit(config, run) == 0
    assert "after step 3" in (run / "log.txt").read_text()
    assert rows(run) == expected
    for name, leaf in named_leaves(saved_state(made, run)).items():
        np.testing.assert_array_equal(leaf, unbroken[name], strict=True, err_msg=name)


@pytest.mark.slow
def test_validation_looks_at_the_average_of_the_parameters(prepared, tmp_path):
    looked = {"train.max_steps": 12, "train.eval_every_steps": 12, "optim.ema_decay": 0.9}
    config = tiny(prepared, looked)
    assert fit.fit(config, tmp_path / "run") == 0
    made = Setup(config)
    state = saved_state(made, tmp_path / "run")

    def loss_of(params: Any) -> float:
        step, parts = made.program.eval_step, made.validation_parts()
        return evaluate_parts(lambda batch: step(params, batch), parts).loss

    average = averaged_parameters(state.opt_state)
    found = rows(tmp_path / "run")[-1]["val_loss"]
    assert found == pytest.approx(loss_of(average), rel=1e-6)
    assert abs(found - loss_of(state.params)) > 0.01
    assert made.evaluated_params(state) is average
    checkpointer = Checkpointer(tmp_path / "run" / "checkpoints", read_only=True)
    read = checkpointer.restore_params(12, made.program.abstract_state().params)
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, read, average)  # generating uses it as well

    plain = Setup(tiny(prepared, {**looked, "optim.ema_decay": None}))
    assert averaged_parameters(plain.program.initial_state().opt_state) is None
    plain_losses, plain_state = trained(plain, 12)
    assert plain.evaluated_params(plain_state) is plain_state.params
    kept = [row["train_loss"] for row in rows(tmp_path / "run")]
    np.testing.assert_allclose(plain_losses, kept, rtol=1e-6)  # looking changes nothing


def test_a_prompt_that_the_tokenizer_cannot_say_is_refused_before_training(text_file, tmp_path):
    data = DataConfig(path=str(tmp_path / "chars"), tokenizer="chars", inputs=(str(text_file),))
    chars = prepare_shards(data, text_files(data.inputs))
    fields = {"data.tokenizer": None, "sample.prompt": "d\u00e9f"}
    config = tiny(chars, {**fields, "train.sample_every_steps": 10})
    with pytest.raises(UserError, match="'\u00e9' is not one of"):
        Setup(config)
    Setup(tiny(chars, fields))  # never sampled


@pytest.mark.slow
def test_dropout_trains_on_several_devices(prepared):
    """With the generator that a run takes there, whose bits are those of a single device's."""
    rates = {"model.embd_pdrop": 0.1, "model.attn_pdrop": 0.1, "model.resid_pdrop": 0.1}
    divided = {"mesh.fsdp": 2, "mesh.tensor": 2}
    for mesh in ({}, divided):
        losses, _ = trained(Setup(tiny(prepared, {**BIG, **rates, **mesh})), 4)
        assert losses[-1] < losses[0]

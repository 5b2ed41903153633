"""A plan of a fine-tuning counts what the step really computes and keeps, and needs no data."""

import dataclasses
from typing import Any

import jax
import pytest

from gptjax.cluster.mesh import batch_layout, make_mesh
from gptjax.config import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.config.presets import load_config
from gptjax.config.schema import CLASSIFY
from gptjax.model.size import flops_per_token
from gptjax.model.trainable import trained_count
from gptjax.plan import plan
from gptjax.planning.finetuning import chosen_for_training, training_flops, without_data
from gptjax.planning.layout import Layout
from gptjax.planning.memory import memory
from gptjax.training.program import assemble

ROWS, TIME = 32, 16
MODEL = ModelConfig(
    n_layer=4, n_head=2, n_embd=64, n_ctx=TIME, n_vocab=1024, dtype="float32", attention="xla",
    unroll=4,
)  # fmt: skip
LORA: dict[str, Any] = {"lora_rank": 4, "lora_targets": ("c_attn", "c_proj", "c_fc")}
LAST: dict[str, Any] = {"trainable": ("h/*", "ln_f/*"), "trainable_layers": 1}


def config(model: dict[str, Any], optim: dict[str, Any], **train: Any) -> Config:
    return Config(
        model=dataclasses.replace(MODEL, **model),
        optim=OptimConfig(warmup_steps=1, **optim),
        train=TrainConfig(
            batch_tokens=ROWS * TIME, micro_batch=ROWS, loss_chunk_tokens=ROWS * TIME, max_steps=9,
            init_from="some/run", **train,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "optim"),
    [
        (LORA, {}),
        ({}, LAST),
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param({}, {"trainable": ("ln_f/*",)}, marks=pytest.mark.slow),
        pytest.param({}, {"trainable": ("wpe/*",)}, marks=pytest.mark.slow),
    ],
)
def test_a_step_multiplies_no_more_than_what_is_trained_needs(model, optim):
    asked = config(model, optim)
    compiled: Any = assemble(asked, make_mesh(1)).compile(batch_layout(asked, 1, ROWS))
    # the attention of XLA computes all pairs, of which half are counted
    pairs = 2 * (training_flops(asked) - _without_attention(asked))
    expected = ROWS * TIME * (_without_attention(asked) + pairs)
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.1)


def _without_attention(asked: Config) -> float:
    """The formula in the limit of a context of one token, whose attention is nothing."""
    one = dataclasses.replace(asked, train=dataclasses.replace(asked.train, context=1))
    by_token = training_flops(asked) - training_flops(one)
    return training_flops(one) - by_token / (TIME - 1)


def test_what_is_frozen_saves_arithmetic_by_hand():
    matrices, head = 12 * 4 * 64**2, 1024 * 64
    pairs = 12 * 4 * TIME * 64 / 2
    assert training_flops(config({}, {})) == flops_per_token(MODEL, TIME)
    last = 2 * matrices + pairs / 3 + (4 * matrices + pairs * 2 / 3) / 4 + 4 * head
    assert training_flops(config({}, LAST)) == pytest.approx(last)
    adapters = 4 * 4 * (64 + 3 * 64 + 2 * 64 + 64 + 4 * 64 + 4 * 64 + 64)
    lora = 4 * (matrices + head) + 6 * adapters + pairs
    assert training_flops(config(LORA, {})) == pytest.approx(lora)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
@pytest.mark.parametrize(("model", "optim"), [(LORA, {}), ({}, LAST)], ids=["adapters", "last"])
def test_the_planned_state_is_the_real_one(model, optim, name):
    asked = config(model, {**optim, "name": name, "ema_decay": 0.99})
    state = assemble(asked, make_mesh(1)).abstract_state()
    actual = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    found = memory(asked, Layout(), ROWS)
    assert found.arguments - found.batch == pytest.approx(actual, rel=2e-3)
    whole = memory(config({}, {}), Layout(), ROWS)
    assert found.moments + found.gradients < (whole.moments + whole.gradients) / 2


def test_without_a_model_to_start_from_nothing_is_frozen():
    asked = without_data(load_config("spam_classify"))
    assert (asked.model.n_classes, asked.model.n_special) == (2, 0)
    assert asked.train.batch_tokens == 8 * 256
    whole = trained_count(asked.model, chosen_for_training(asked))
    train = dataclasses.replace(asked.train, init_from="some/run")
    started = without_data(dataclasses.replace(load_config("spam_classify"), train=train))
    assert trained_count(started.model, chosen_for_training(started)) < whole / 3
    gpt1 = without_data(load_config("spam_classify_gpt1"))
    assert (gpt1.task, gpt1.model.n_special) == (CLASSIFY, 3)


@pytest.mark.parametrize(
    "name",
    ["spam_classify", "spam_classify_gpt1", "rocstories_gpt1", "instruct_alpaca", "instruct_lora"],
)
def test_every_fine_tuning_has_a_plan(name, capsys):
    assert plan(["--config", name, "--gpu", "t4", "--gpus", "1"]) == 0
    assert "as if every example filled the context" in capsys.readouterr().out

"""A flag that changes nothing beside others is noted, and no other one."""

import dataclasses
import re
from typing import Any

import pytest

from gptjax.config import Config
from gptjax.config.effects import (
    BY_DATA,
    CLASSES,
    EXAMPLES,
    FROZEN,
    INSTRUCTIONS,
    LABELS,
    PREPARING,
    SAMPLING,
    SHARDS,
    Surroundings,
    note_without_effect,
)

HERE = Surroundings(is_prepared=False, platform="cpu", devices=1)
GPU = Surroundings(is_prepared=False, platform="gpu", devices=8)
EVERY = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(Config)
    if dataclasses.is_dataclass(part := getattr(Config(), section.name))
    for field in dataclasses.fields(part)
]


def flags(here: Surroundings = HERE, task: str = "pretrain", **fields: Any) -> set[str]:
    """The fields that are noted of a run where all were typed."""
    config = Config(task=task)
    for name, value in fields.items():
        section, field = name.split("__")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    lines = note_without_effect(config, EVERY, here)
    assert len(lines) <= 1
    found = re.findall(r"--([\w.-]+) \(", "".join(lines))
    return {name.replace("-", "_") for name in found}


# of AdamW on a cosine in bfloat16
ANYWHERE = {"optim.muon_momentum", "optim.cooldown_fraction", "model.float32_matmul"}
ANYWHERE |= {"train.deterministic"}  # on a CPU
ANYWHERE |= set(FROZEN.split())  # without a model to start from
ALWAYS = ANYWHERE | set(f"{EXAMPLES} {CLASSES} {INSTRUCTIONS}".split())  # when pretraining


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({}, set()),
        ({"optim__name": "adafactor"}, {"optim.beta1", "optim.beta2", "optim.eps"}),
        ({"optim__name": "lion"}, {"optim.eps"}),
        ({"train__eval_every_steps": 0}, {"train.eval_tokens"}),
        ({"train__sample_every_steps": 0}, {*SAMPLING.split(), "sample.max_new_tokens"}),
        ({"sample__temperature": 0.0}, {"sample.top_k", "sample.top_p", "sample.min_p"}),
        ({"sample__top_k": 1}, {"sample.temperature", "sample.top_p", "sample.min_p"}),
        ({"data__mixture": ("a=1",), "data__mixture_changes": ("19073=2",)},
         {"data.mixture_changes"}),
        ({"data__mixture": ("a=1",), "data__mixture_changes": ("19072=2",)}, set()),
        ({"train__cpu_devices": 2}, {"train.cpu_devices"}),
        ({"here": HERE._replace(is_prepared=True)}, set(PREPARING.split())),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_noted(fields, noted):
    assert flags(**fields) == ALWAYS | noted


def test_a_gpu_has_its_own_fields():
    assert flags(GPU) == ALWAYS - {"train.deterministic"} | {"train.cpu_devices"}


def test_each_task_reads_its_own_fields():
    prepared = HERE._replace(is_prepared=True)  # which has no meaning for examples
    of_labels = ANYWHERE | set(f"{SHARDS} {INSTRUCTIONS} {BY_DATA}".split())
    assert flags(prepared, "classify") == of_labels
    of_answers = ANYWHERE | set(f"{SHARDS} {CLASSES} {LABELS}".split())
    assert flags(prepared, "instruct") == of_answers
    without_samples = flags(prepared, "instruct", train__sample_every_steps=0)
    assert without_samples == of_answers | set(SAMPLING.split())  # and not the longest response
    assert flags(task="classify", data__val_examples="v", data__test_examples="t") == of_labels | {
        "data.val_fraction",
        "data.test_fraction",
    }
    in_epochs = {
        "train__batch_rows": 8, "train__epochs": 1, "train__eval_every_epochs": 1,
        "optim__warmup_fraction": 0.1,
    }  # fmt: skip
    assert flags(task="classify", **in_epochs) == of_labels | {
        *("train.batch_tokens", "train.eval_every_steps", "train.save_every_steps"),
        "optim.warmup_steps",
    }


def test_a_run_that_starts_from_a_model_reads_what_is_frozen():
    found = flags(train__init_from="runs/x")
    assert found == ALWAYS - set(FROZEN.split()) | {"model.scale_residual_init"}


def test_muon_reads_its_momentum():
    assert flags(optim__name="muon") == ALWAYS - {"optim.muon_momentum"}


def test_a_flat_schedule_has_no_end():
    flat = {"optim__schedule": "wsd", "optim__cooldown_fraction": 0.0}
    assert flags(**flat) == ALWAYS - {"optim.cooldown_fraction"} | {
        "optim.final_lr",
        "optim.decay_steps",
    }
    assert flags(optim__schedule="wsd") == ALWAYS - {"optim.cooldown_fraction"}
    on_cpus = {"model.float32_matmul", "train.deterministic"}
    assert flags(GPU, model__dtype="float32") == ALWAYS - on_cpus | {"train.cpu_devices"}


def test_what_was_not_typed_is_not_noted():
    assert note_without_effect(Config(), ["optim.beta1"], HERE) == []

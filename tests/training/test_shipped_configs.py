"""The switches of every shipped config train, in a model of a few thousand parameters."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import EXHAUSTIVE

from gptjax.config import Config
from gptjax.config.presets import load_config, preset_names
from gptjax.config.schema import PRETRAIN
from gptjax.config.validation import validate
from gptjax.data.manifest import Manifest
from gptjax.training.setup import Setup

LAYERS = 2
STEPS = 4
TRAINED_ELSEWHERE = {"quickstart", "shakespeare", "tiny"}
# no two of these have the same switches, and the others' are among those of whole runs elsewhere
REPRESENTATIVE = {
    "gpt1_117m", "gpt2_124m_anneal", "gpt2_124m_muon", "gpt2_1558m_nodes", "gpt2_355m_8gb",
    "gpt2_774m_24gb",
}  # fmt: skip
MARKED = [
    pytest.param(name, marks=pytest.mark.slow if name in REPRESENTATIVE else EXHAUSTIVE)
    for name in preset_names()
    if name not in TRAINED_ELSEWHERE and load_config(name).task == PRETRAIN
]


def scaled_down(config: Config, data: Manifest, scratch: Path) -> Config:
    """The same switches in a small shape, on `data`, for a few steps."""
    model = dataclasses.replace(
        config.model, n_layer=LAYERS, n_head=2, n_embd=16, n_ctx=64, n_vocab=None,
        unroll=1 if config.model.remat != "none" else min(config.model.unroll, LAYERS),
    )  # fmt: skip
    sources = []
    for number, source in enumerate(config.data.mixture):
        copy = shutil.copytree(data.directory, scratch / str(number))
        sources.append(f"{copy}={source.rpartition('=')[2]}")
    changes = tuple(f"2={change.partition('=')[2]}" for change in config.data.mixture_changes)
    given = dataclasses.replace(
        config.data, path=str(data.directory), tokenizer=None, source=None, hub=None, inputs=(),
        mixture=tuple(sources), mixture_changes=changes,
    )  # fmt: skip
    optim = dataclasses.replace(config.optim, peak_lr=1e-2, warmup_steps=1, decay_steps=None)
    is_ramped = config.train.ramp_from_tokens is not None
    train = dataclasses.replace(
        config.train, batch_tokens=16 * 64, micro_batch=1, max_steps=STEPS, cpu_devices=1,
        ramp_from_tokens=8 * 64 if is_ramped else None, ramp_steps=2 if is_ramped else 0,
        eval_every_steps=0, save_every_steps=0, sample_every_steps=0,
    )  # fmt: skip
    mesh = dataclasses.replace(
        config.mesh, fsdp=min(config.mesh.fsdp, 4), tensor=min(config.mesh.tensor, 2)
    )
    return dataclasses.replace(config, model=model, data=given, optim=optim, train=train, mesh=mesh)


def check_that_it_learns(config: Config) -> None:
    validate(config)
    made = Setup(config)
    state, losses = made.program.initial_state(), []
    for step in range(STEPS):
        batch = made.feed.training([made.source[step]])
        state, metrics = made.train_steps(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("name", MARKED)
def test_a_shipped_config_learns_in_miniature(name, prepared, tmp_path):
    check_that_it_learns(scaled_down(load_config(name), prepared, tmp_path))


@pytest.mark.slow
def test_muon_learns_with_what_no_shipped_config_selects(prepared, tmp_path):
    """A head of its own, attention inside documents and an average of the parameters, at once."""
    config = scaled_down(load_config("gpt2_124m_muon"), prepared, tmp_path)
    assert (config.model.tied_head, config.data.document_mask) == (True, False)
    assert config.optim.ema_decay is None
    model = dataclasses.replace(config.model, tied_head=False)
    data = dataclasses.replace(config.data, document_mask=True)
    optim = dataclasses.replace(config.optim, ema_decay=0.99)
    check_that_it_learns(dataclasses.replace(config, model=model, data=data, optim=optim))

"""The eight models of GPT-3 have the paper's figures, and are described without memory."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import ROOT

from gptjax.base.tree import count_elements
from gptjax.cluster.mesh import make_mesh
from gptjax.config import MeshConfig
from gptjax.config.batches import batch_schedule
from gptjax.config.gpt3 import GPT3_SIZES, gpt3
from gptjax.config.presets import find_preset, load_config
from gptjax.config.validation import validate
from gptjax.plan import plan
from gptjax.training.program import assemble

# Table 2.1: its name, the parameters in it, n_layer, d_model, n_head, d_head, batch in millions of
# tokens, learning rate; table D.1: millions of parameters. XL and 13B: gptjax/config/gpt3.py.
PAPER = {
    "gpt3_125m": ("Small", 125e6, 12, 768, 12, 64, 0.5, 6.0e-4, 125),
    "gpt3_350m": ("Medium", 350e6, 24, 1024, 16, 64, 0.5, 3.0e-4, 356),
    "gpt3_760m": ("Large", 760e6, 24, 1536, 16, 96, 0.5, 2.5e-4, 760),
    "gpt3_1300m": ("XL", 1.3e9, 24, 2048, 16, 128, 1, 2.0e-4, 1_320),
    "gpt3_2700m": ("2.7B", 2.7e9, 32, 2560, 32, 80, 1, 1.6e-4, 2_650),
    "gpt3_6700m": ("6.7B", 6.7e9, 32, 4096, 32, 128, 2, 1.2e-4, 6_660),
    "gpt3_13b": ("13B", 13.0e9, 40, 5120, 40, 128, 2, 1.0e-4, 12_850),
    "gpt3_175b": ("175B", 175.0e9, 96, 12_288, 96, 128, 3.2, 0.6e-4, 174_600),
}


def text_of(name: str) -> str:
    return " ".join(find_preset(name).read_text().split())


def parameters_of(n_layer: int, width: int) -> int:
    """Counted by hand: tables, then twelve matrices of D x D a layer, their biases, two norms."""
    layer = 12 * width**2 + (3 + 1 + 4 + 1) * width + 4 * width
    return 50_257 * width + 2048 * width + n_layer * layer + 2 * width


@pytest.mark.parametrize("name", PAPER)
def test_a_model_has_the_published_shape_and_its_parameters(name):
    row, in_name, n_layer, width, heads, head_dim, _, _, millions = PAPER[name]
    model = load_config(name).model
    assert (model.n_layer, model.n_embd, model.n_head) == (n_layer, width, heads)
    assert (model.head_dim, model.n_ctx, model.n_vocab) == (head_dim, 2048, 50_257)
    assert heads * head_dim == width
    assert (model.norm, model.final_norm, model.scale_residual_init) == ("pre", True, True)
    assert (model.qkv_bias, model.bias, model.tied_head) == (True, True, True)
    assert model.activation == "gelu_tanh"
    parameters = parameters_of(n_layer, width)
    assert f"{parameters:,} parameters" in text_of(name)
    assert parameters == pytest.approx(in_name, rel=0.025)
    assert parameters == pytest.approx(millions * 1e6, rel=0.0035)
    assert gpt3(row).optim == load_config(name).optim
    assert gpt3(row).train == load_config(name).train


@pytest.mark.parametrize("name", PAPER)
def test_the_state_is_described_without_memory(name):
    _, _, n_layer, width, *_ = PAPER[name]
    config = replace(load_config(name), mesh=MeshConfig())
    state = assemble(config, make_mesh(1)).abstract_state()
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {jax.ShapeDtypeStruct}
    padded = (config.model.padded_vocab - 50_257) * width
    parameters = parameters_of(n_layer, width) + padded
    assert count_elements(state.params) == parameters
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * parameters


@pytest.mark.parametrize("name", PAPER)
def test_a_model_is_trained_as_published(name):
    _, _, _, _, _, _, batch, peak_lr, _ = PAPER[name]
    config = load_config(name)
    validate(config)
    optim, train, ramp = config.optim, config.train, batch_schedule(config)
    assert train.batch_tokens == pytest.approx(batch * 1e6, rel=0.05)
    assert (optim.peak_lr, optim.final_lr) == (peak_lr, pytest.approx(peak_lr / 10))
    assert (optim.name, optim.beta1, optim.beta2, optim.eps) == ("adamw", 0.9, 0.95, 1e-8)
    assert (optim.weight_decay, optim.clip_norm, optim.schedule) == (0.1, 1.0, "cosine")
    seen = [
        ramp.rows_before(step or 0) * 2048
        for step in (optim.warmup_steps, optim.decay_steps, train.max_steps)
    ]
    np.testing.assert_allclose(seen, [375e6, 260e9, 300e9], atol=train.batch_tokens / 2)
    assert 4e9 <= ramp.rows_before(train.ramp_steps) * 2048 * 1.0001 <= 12.01e9
    assert ramp.rows(0) * 4 == ramp.final
    assert all(f"{n:,} steps" in text_of(name) for n in (train.max_steps, train.ramp_steps))
    assert f"{optim.decay_steps:,}" in text_of(name)
    assert f"{optim.warmup_steps:,}" in text_of(name)


@pytest.mark.usefixtures("newest_gpu_counts")
@pytest.mark.parametrize("name", sorted(PAPER.keys() - {"gpt3_175b"}))
def test_a_docstring_promises_the_planner_s_hours(name, capsys):
    promised, gpus = re.findall(r"([\d.]+) hours on (\d+) H100", text_of(name))[0]
    assert plan(["--config", name, "--gpu", "h100", "--gpus", gpus]) == 0
    assert f"in {promised} hours" in capsys.readouterr().out
    parameters = parameters_of(*PAPER[name][2:4])
    table = (ROOT / "docs/planning.md").read_text()
    assert f"| {name} | {parameters:,} | {gpus} | {promised} |" in table


def test_table_2_1_s_two_misprints_contradict_table_d_1():
    """As printed, XL's heads make its attention 3,072 wide, and 13B is 5,140 wide."""
    attention = 24 * (4 * 2048 * 3072 - 4 * 2048**2 + 3 * (3072 - 2048))
    assert (parameters_of(24, 2048) + attention) / 1e6 == pytest.approx(1_517, abs=1)
    assert parameters_of(40, 5140) / 1e6 == pytest.approx(12_953, abs=1)
    assert len(GPT3_SIZES) == 8

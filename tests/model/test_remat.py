"""Rematerialisation: the same numbers from less memory."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXHAUSTIVE

from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import init_params, parameter_shapes
from gptjax.training.objectives import language_modelling

POLICIES = ["none", "dots", "block", "full"]
BATCH, TIME, VOCAB = 4, 256, 512


@cache
def results(remat, attention, unroll, activation="gelu_tanh"):
    """Loss and gradients of three small layers with every kind of dropout."""
    cfg = ModelConfig(
        n_layer=3, n_head=2, n_embd=16, n_ctx=TIME, n_vocab=VOCAB, dtype="float32", embd_pdrop=0.2,
        attn_pdrop=0.2, resid_pdrop=0.2, remat=remat, attention=attention, unroll=unroll,
        activation=activation,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 5 * x, init_params(cfg, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, TIME + 1), dtype=np.int32)
    batch = {"tokens": tokens, "weights": np.full((2, TIME), 1 / (2 * TIME), np.float32)}
    loss = language_modelling(cfg).loss
    return jax.jit(jax.value_and_grad(loss))(params, batch, jax.random.key(7))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "unroll", "activation"),
    [
        ("xla", 1, "gelu_tanh"),
        ("xla", 1, "gelu_erf"),
        ("blockwise", 1, "gelu_tanh"),
        pytest.param("xla", 2, "gelu_tanh", marks=EXHAUSTIVE),
    ],
    ids=str,
)
@pytest.mark.parametrize("remat", POLICIES[1:])
def test_every_policy_has_the_same_loss_and_gradients(remat, attention, unroll, activation):
    loss, gradients = results(remat, attention, unroll, activation)
    expected_loss, expected = results("none", attention, unroll, activation)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    others = named_leaves(expected)
    for name, gradient in named_leaves(gradients).items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-5, atol=1e-6, err_msg=name)


def temporary_bytes(remat, n_layer, unroll=1):
    """What compiled loss and gradients hold besides their arguments and results."""
    cfg = ModelConfig(
        n_layer=n_layer, n_head=4, n_embd=128, n_ctx=TIME, n_vocab=VOCAB, dtype="float32",
        remat=remat, unroll=unroll,
    )  # fmt: skip
    batch = {
        "tokens": jax.ShapeDtypeStruct((BATCH, TIME + 1), jnp.int32),
        "weights": jax.ShapeDtypeStruct((BATCH, TIME), jnp.float32),
    }
    gradient = jax.value_and_grad(language_modelling(cfg, TIME).loss)
    compiled = jax.jit(gradient).lower(parameter_shapes(cfg), batch, None).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, pytest.param(2, marks=EXHAUSTIVE)])
def test_each_policy_needs_less_memory_than_the_one_before(unroll):
    """At 16 layers: at four, attending again costs `full` what not keeping it has saved."""
    none, dots, block, full = (temporary_bytes(remat, 16, unroll) for remat in POLICIES)
    assert none > 1.3 * dots
    assert dots > 1.3 * block
    assert block > full


@pytest.mark.slow
def test_four_layers_already_need_less():
    none, dots, block = (temporary_bytes(remat, 4) for remat in POLICIES[:3])
    assert none > 1.3 * dots
    assert dots > 1.3 * block

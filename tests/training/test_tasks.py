"""Language modelling: one loss however its logits are cut, and rows that add up to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.base.tree import named_leaves
from gptjax.config import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.corpus import Corpus
from gptjax.model.gpt import GPT, init_params
from gptjax.training.objectives import language_modelling
from gptjax.training.tasks import TASKS

BATCH, TIME, VOCAB = 3, 8, 50


def model(**fields):
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_ctx": TIME, "n_vocab": VOCAB}
    return ModelConfig(**{**shape, "dtype": "float32", **fields})


def parameters(cfg):
    """Initial parameters, three times as large so that no two tokens are equally likely."""
    return jax.tree.map(lambda x: 3 * x, init_params(cfg, jax.random.key(0)))


def batch():
    rng = np.random.default_rng(0)
    weights_BT = rng.random((BATCH, TIME), np.float32) * rng.integers(0, 2, (BATCH, TIME))
    weights_BT[1] = 0
    return {
        "tokens": jnp.asarray(rng.integers(0, VOCAB, (BATCH, TIME + 1)), jnp.int32),
        "weights": jnp.asarray(weights_BT, jnp.float32),
    }


def reference_rows(cfg, params):
    """Weighted sums of `-log p(next token)` in float64 from the model's own logits."""
    data = {name: np.asarray(x) for name, x in batch().items()}
    logits_BTV = GPT(cfg).apply({"params": params}, data["tokens"][:, :-1])
    logits_BTV = np.float64(logits_BTV)[..., :VOCAB]
    log_total_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, data["tokens"][:, 1:, None], -1)[..., 0]
    return ((log_total_BT - target_BT) * data["weights"]).sum(1)


@pytest.mark.parametrize("tied_head", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("rate", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_chunks_change_neither_loss_nor_gradients(tied_head, rate):
    cfg = model(tied_head=tied_head, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)
    params, key = parameters(cfg), jax.random.key(1) if rate else None
    (loss, gradients), (chunked, others) = (
        jax.jit(jax.value_and_grad(language_modelling(cfg, tokens).loss))(params, batch(), key)
        for tokens in (0, 7)
    )
    np.testing.assert_allclose(chunked, loss, rtol=1e-6)
    expected = named_leaves(gradients)
    for name, gradient in named_leaves(others).items():
        largest = abs(expected[name]).max()
        assert abs(gradient - expected[name]).max() <= 1e-5 * largest, name
    head = others["wte"]["embedding"] if tied_head else others["lm_head"]
    assert (head[:VOCAB] != 0).all()
    assert (head[VOCAB:] == 0).all()


@pytest.mark.parametrize("chunk_tokens", [0, 7])
def test_the_losses_are_numpys_sums(chunk_tokens):
    cfg = model()
    params, task = parameters(cfg), language_modelling(cfg, chunk_tokens)
    expected_B = reference_rows(cfg, params)
    assert expected_B[1] == 0
    rows_B = jax.jit(task.row_losses)(params, batch())["loss"]
    assert (rows_B.shape, rows_B.dtype) == ((BATCH,), jnp.float32)
    np.testing.assert_allclose(rows_B, expected_B, rtol=1e-6)
    loss = jax.jit(task.loss)(params, batch(), None)
    np.testing.assert_allclose(loss, expected_B.sum(), rtol=1e-6)


@pytest.mark.slow
def test_only_a_key_turns_dropout_on():
    cfg = model(embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3)
    params, task = parameters(cfg), language_modelling(cfg, 7)
    certain = jax.jit(language_modelling(model(), 7).loss)(params, batch(), None)
    loss = jax.jit(task.loss)
    np.testing.assert_array_equal(loss(params, batch(), None), certain)
    first, again, other = (loss(params, batch(), jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len({float(first), float(other), float(certain)}) == 3
    rows_B = jax.jit(task.row_losses)(params, batch())["loss"]
    np.testing.assert_allclose(rows_B.sum(), certain, rtol=1e-6)


def test_all_targets_count_unless_the_examples_say_otherwise():
    losses, some = language_modelling(model(), 7), batch()
    weights = losses.weights({"tokens": some["tokens"]})
    np.testing.assert_array_equal(weights, np.ones((BATCH, TIME), np.float32), strict=True)
    assert losses.weights(some) is some["weights"]


def test_the_table_of_tasks_has_it_and_its_form_is_that_of_its_examples(prepared):
    data = DataConfig(path=str(prepared.directory))
    config = Config(model=model(n_vocab=257), data=data, train=TrainConfig(context=TIME))
    example, form = Corpus(config).shuffled(0)[3], TASKS["pretrain"].form(config)
    assert {n: (x.shape, x.dtype) for n, x in example.items()} == {
        n: (x.shape, x.dtype) for n, x in form.items()
    }

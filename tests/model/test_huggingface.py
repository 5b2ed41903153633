"""The same numbers as Hugging Face's GPT-2 and GPT-1: logits, loss and every gradient.

The golden file needs no torch; the live comparisons, with other seeds and sizes, do.
"""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.base.tree import as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.conversion.weights import from_huggingface
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.training.objectives import language_modelling

GOLDEN = Path(__file__).parent.parent / "golden"


def config_of(shape, **switches):
    sizes = {k: shape[k] for k in ("n_layer", "n_head", "n_embd")}
    return ModelConfig(
        **sizes,
        n_ctx=shape["n_positions"],
        n_vocab=shape["vocab_size"],
        dtype="float32",
        **switches,
    )


def part(numbers, prefix):
    return {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}


def assert_same_numbers(cfg, theirs):
    """Compare our logits, loss and gradients with those of `make_gpt2_tiny.run`."""
    ours = from_huggingface(part(theirs, "parameter/"), cfg, "the reference")
    params = jax.tree.map(jnp.asarray, as_tree(ours))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameter_shapes(cfg))
    tokens_BT = theirs["tokens"]
    batch = {"tokens": tokens_BT, "weights": np.ones_like(tokens_BT[:, 1:], np.float32)}

    def mean_loss(params):
        return language_modelling(cfg, 7).loss(params, batch, None) / batch["weights"].sum()

    logits_BTV = jax.jit(GPT(cfg).apply)({"params": params}, tokens_BT)
    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(logits_BTV[..., : cfg.n_vocab], theirs["logits"], rtol=0, atol=1e-5)
    assert float(loss) == pytest.approx(float(theirs["loss"]), abs=1e-6)
    expected = from_huggingface(part(theirs, "gradient/"), cfg, "the reference")
    assert named_leaves(gradients).keys() == expected.keys()
    for name, gradient in named_leaves(gradients).items():
        assert abs(expected[name]).max() > 1e-3, f"{name} has no gradient to compare"
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "gpt2_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def torch_side():
    """The functions of make_gpt2_tiny.py, which import torch."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return runpy.run_path(str(GOLDEN / "make_gpt2_tiny.py"))


def test_the_golden_gpt2_has_the_same_logits_loss_and_gradients(golden):
    assert_same_numbers(config_of(json.loads(str(golden["shape"]))), golden)


def test_the_golden_file_is_small():
    assert (GOLDEN / "gpt2_tiny.npz").stat().st_size < 200_000


def test_the_golden_file_is_what_its_script_makes(golden, torch_side):
    shape = json.loads(str(golden["shape"]))
    made = torch_side["gpt2"](0, **shape)
    assert shape == torch_side["SHAPE"]
    assert made.keys() == golden.keys() - {"shape"}
    for name, array in made.items():
        np.testing.assert_allclose(golden[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("seed", "shape"),
    [
        (1, {"n_layer": 1, "n_head": 4, "n_embd": 32, "vocab_size": 128, "n_positions": 8}),
        (2, {"n_layer": 3, "n_head": 3, "n_embd": 24, "vocab_size": 300, "n_positions": 20}),
    ],
)
def test_other_gpt2s_have_the_same_numbers(torch_side, seed, shape):
    assert_same_numbers(config_of(shape), torch_side["gpt2"](seed, **shape))


def test_the_gpt1_switches_give_gpt1(torch_side):
    cfg = config_of(torch_side["SHAPE"], norm="post", final_norm=False)
    assert_same_numbers(cfg, torch_side["gpt1"](3, **torch_side["SHAPE"]))

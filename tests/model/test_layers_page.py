"""The layers as a reader of docs/layers.md tries them: types, shapes, rates, gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.test_util import check_grads

from gptjax.config import ModelConfig
from gptjax.model import attention, losses, ops, products
from gptjax.model.gpt import GPT
from gptjax.model.layers import MLP, Block, CausalSelfAttention, LayerNorm

CFG = ModelConfig(n_layer=1, n_head=2, n_embd=8, n_ctx=6, n_vocab=100, dtype="float32")
QKV = np.random.default_rng(0).integers(-2, 3, (3, 2, 4, 2, 4))
WAYS = [attention.attend, attention.xla_attention, attention.blockwise_attention]


@pytest.mark.slow
def test_the_test_file_of_the_page_passes():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/layers.md").read_text(), re.S)
    names: dict = {}
    exec(code, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()


PROMOTED = {
    "gelu": (ops.gelu, QKV[:1]),
    "gelu_erf": (ops.gelu_erf, QKV[:1]),
    "layer_norm": (ops.layer_norm, QKV[:1]),
    "dropout": (lambda x: ops.dropout(x, 0.5, jax.random.key(0)), QKV[:1]),
    "mixed_matmul": (products.mixed_matmul, [QKV[0, 0, 0], QKV[0, 0, 0].T]),
    **{way.__name__: (way, QKV) for way in WAYS},
    "cross_entropy_rows": (
        lambda x: losses.cross_entropy_rows(x, QKV[0, :, :, 0, 0] + 2, np.ones((2, 4), int)),
        [np.arange(40).reshape(2, 4, 5)],
    ),
}


@pytest.mark.parametrize("name", PROMOTED)
def test_integers_count_as_float32(name):
    function, arrays = PROMOTED[name]
    as_floats = function(*(jnp.asarray(x, jnp.float32) for x in arrays))
    for kind in (np.asarray, jnp.asarray, lambda x: x.tolist()):
        y = function(*map(kind, arrays))
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y, as_floats)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), jnp.float32(2), "half", "0.5"])
@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["without a key", "with one"])
def test_a_rate_outside_its_range_is_refused_by_name(rate, key):
    with pytest.raises(ValueError, match="rate"):
        ops.dropout(jnp.ones(3), rate, key)
    for attend in [*WAYS, attention.cudnn_attention]:
        with pytest.raises(ValueError, match="rate"):
            attend(*QKV, rate, key)


def test_a_traced_rate_drops_as_a_known_one():
    x, key = jnp.ones(100), jax.random.key(0)
    dropped = jax.jit(ops.dropout)(x, 0.5, key)
    np.testing.assert_array_equal(dropped, ops.dropout(x, 0.5, key))


@pytest.mark.parametrize("count", [1.5, "2", 0])
def test_a_count_that_is_no_integer_is_refused_by_name(count):
    ids = np.zeros((1, 3), int)
    with pytest.raises(ValueError, match="chunk_tokens"):
        losses.cross_entropy(np.ones((1, 3, 4)), np.ones((8, 4)), ids, ids, 5, count)
    with pytest.raises(ValueError, match="n_vocab"):
        losses.token_losses(np.ones((1, 3, 4)), np.ones((8, 4)), ids, count, 2)


def test_all_ways_of_attending_take_the_same_arguments():
    expected = attention.attend(*QKV)
    for attend in WAYS:
        np.testing.assert_allclose(attend(*QKV, 0, None), expected, atol=1e-6)


MISFITS = {
    "k_B": lambda: attention.attend(QKV[0], QKV[1, :, :, :1], QKV[2]),
    "mask_BTS": lambda: attention.attend(*QKV, mask_BTS=np.ones((3, 4), bool)),
    "mask_BTS has shape ()": lambda: attention.attend(*QKV, mask_BTS=True),
    "v_B": lambda: attention.blockwise_attention(QKV[0], QKV[1], QKV[2, :, :3]),
    "x_MD": lambda: ops.layer_norm([[1, 2], [3]]),
    "x is not": lambda: ops.gelu("text"),
    "eps is '1'": lambda: ops.layer_norm(jnp.ones((2, 4)), eps="1"),
    "eps": lambda: jax.jit(ops.layer_norm)(jnp.ones((2, 4)), None, None, 1e-5),
    "eot_id": lambda: attention.document_numbers([[1, 2]], None),
    "scale_D": lambda: ops.layer_norm(jnp.ones((2, 4)), jnp.ones(3)),
    "kernel_DF": lambda: products.mixed_matmul(jnp.ones((2, 4)), jnp.ones((3, 4))),
    "targets_BT": lambda: losses.cross_entropy_rows(jnp.ones((2, 4, 5)), [[0]], [[1]]),
    "n_head": lambda: GPT(ModelConfig(n_head=3, n_embd=8, n_vocab=9)).init(
        jax.random.key(0), jnp.ones((1, 2), int)
    ),
    "tokens_BT": lambda: GPT(CFG).init(jax.random.key(0), jnp.ones((1, 2))),
    "x_BTD": lambda: Block(CFG).init(jax.random.key(0), jnp.ones((1, 2, 4))),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        MISFITS[name]()


@pytest.mark.parametrize("layer", [LayerNorm(), MLP(CFG), CausalSelfAttention(CFG), Block(CFG)])
def test_every_layer_works_alone(layer):
    y, _ = layer.init_with_output(jax.random.key(0), np.arange(32).reshape(1, 4, 8))
    assert (y.shape, y.dtype) == ((1, 4, 8), jnp.float32)


@pytest.mark.slow
def test_float64_gradients_are_those_of_differences():
    x = np.random.default_rng(1).standard_normal((3, 1, 4, 2, 4))
    with jax.enable_x64(True):
        check_grads(ops.layer_norm, (x[0], x[1, 0, 0, 0], x[2, 0, 0, 0]), 1, modes=["rev"])
        check_grads(products.mixed_matmul, (x[0, 0, :, 0], x[1, 0, :, 0].T), 1, modes=["rev"])
        for attend in WAYS:
            check_grads(attend, tuple(x), 1, modes=["rev"])

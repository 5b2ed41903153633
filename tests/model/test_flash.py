"""Flash attention by our own kernels, interpreted on the CPU, against the other attentions."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import causal_inputs, distances, gradients, normal, rounding_gradients
from test_attention import naive_attention

from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.model.attention import ATTENTIONS, xla_attention
from gptjax.model.flash import flash_attention
from gptjax.model.gpt import init_params
from gptjax.training.objectives import language_modelling

# one block, cut short; several blocks; a wider head; padded heads in smaller blocks
SHAPES = [(5, 8), (200, 32)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((256, 64), (300, 80))]
RATE = 0.25


def documents(time):
    """Numbers of documents that begin anywhere; in the second row they come back."""
    rng = np.random.default_rng(time)
    numbers_BT = np.sort(rng.integers(0, 4, (2, time)), axis=1)
    return np.stack([numbers_BT[0], rng.permutation(numbers_BT[1])])


def interpreted(q, k, v, rate=0.0, key=None, documents_BT=None):
    return flash_attention(q, k, v, rate, key, documents_BT, interpret=True)


@pytest.mark.parametrize("inside", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize(("time", "head_dim"), SHAPES)
def test_values_and_gradients_are_those_of_all_weights_at_once(time, head_dim, inside):
    inputs, dy_BTHK = causal_inputs(time, head_dim), normal(2, time, 3, head_dim, seed=9)
    numbers_BT = jnp.asarray(documents(time)) if inside else None
    flash = partial(interpreted, documents_BT=numbers_BT)
    every = partial(xla_attention, documents_BT=numbers_BT)
    np.testing.assert_allclose(jax.jit(flash)(*inputs), every(*inputs), atol=1e-5)
    expected = gradients(every, dy_BTHK, *inputs)
    for gradient, other in zip(gradients(flash, dy_BTHK, *inputs), expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-5)


def test_a_rate_of_almost_one_leaves_nothing():
    q_BTHK = np.ones((1, 4, 1, 16), np.float32)
    assert not interpreted(q_BTHK, q_BTHK, q_BTHK, 1 - 1e-12, jax.random.key(0)).any()


@cache
def dropped_weights(time=256, seed=5):
    """What is left of the causal weights, [2, 3, T, T], read off one-hot values; and all."""
    q, k, _ = causal_inputs(time, head_dim=64)
    run = jax.jit(interpreted, static_argnums=3)
    parts = []
    for key in (jax.random.key(seed), None):
        columns = []
        for start in range(0, time, 64):
            one_hot = np.zeros((2, time, 3, 64), np.float32)
            one_hot[:, range(start, start + 64), :, range(64)] = 1
            columns.append(np.asarray(run(q, k, one_hot, RATE, key)))
        parts.append(np.concatenate(columns, -1).swapaxes(1, 2))
    return parts


def test_weights_are_dropped_at_their_rate_and_independently():
    left, every = dropped_weights()
    seen, kept = every > 0, left != 0
    np.testing.assert_array_equal(seen[0, 0], np.tri(256, dtype=bool))
    np.testing.assert_allclose(left[kept], every[kept] / (1 - RATE), rtol=1e-5)
    assert abs(kept[seen].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / seen.sum())
    # rows, heads, queries and keys drop apart: pairs agree as often as independent draws do
    below = kept[:, :, 128:, :128]
    for one, other in (
        (below[0], below[1]),
        (below[:, 0], below[:, 1]),
        *((below[:, :, n:], below[:, :, :-n]) for n in (1, 2, 32, 64)),
        *((below[..., n:], below[..., :-n]) for n in (1, 2, 32, 64)),
    ):
        agreement = (one == other).mean()
        assert abs(agreement - (0.75**2 + 0.25**2)) < 5 * np.sqrt(0.25 / one.size)


def test_the_weights_that_are_dropped_follow_the_key():
    left, _ = dropped_weights()
    again, _ = dropped_weights.__wrapped__()
    np.testing.assert_array_equal(left, again)
    other, _ = dropped_weights(seed=6)
    below = np.tri(256, dtype=bool)
    agreement = ((left != 0) == (other != 0))[:, :, below].mean()
    assert abs(agreement - (0.75**2 + 0.25**2)) < 5 * np.sqrt(0.25 / (6 * below.sum()))


def test_the_backward_pass_drops_the_same_weights():
    left, _ = dropped_weights()
    factors_BHTS = (left != 0) / np.float32(1 - RATE)
    inputs, dy_BTHK = causal_inputs(256, head_dim=64), normal(2, 256, 3, 64, seed=9)
    dropping = partial(interpreted, rate=RATE, key=jax.random.key(5))
    expected = gradients(partial(naive_attention, factors_BHTS=factors_BHTS), dy_BTHK, *inputs)
    for gradient, other in zip(gradients(dropping, dy_BTHK, *inputs), expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_narrow_types_are_no_less_exact_than_those_of_blockwise(dtype):
    inputs = [jnp.asarray(x, dtype) for x in causal_inputs(256, 64)]
    dy_BTHK = jnp.asarray(normal(2, 256, 3, 64, seed=9), dtype)
    exact = gradients(naive_attention, *(x.astype(jnp.float32) for x in (dy_BTHK, *inputs)))
    flash = rounding_gradients(interpreted, dy_BTHK, *inputs)
    assert all(x.dtype == dtype for x in flash)
    flash = distances(flash, exact)
    others = [ATTENTIONS[name] for name in ("blockwise", "xla")]
    tiles, every = (
        distances(rounding_gradients(attend, dy_BTHK, *inputs), exact) for attend in others
    )
    assert np.linalg.norm(flash) <= np.linalg.norm(tiles), (flash, tiles)
    # the mean gradient of a query's weights comes from its rounded output
    assert (flash <= 1.1 * every).all(), (flash, every)


@pytest.mark.slow
def test_a_model_has_the_same_gradients_however_much_of_it_is_recomputed(monkeypatch):
    """With dropout, so the kernels must drop the same weights when they run again."""
    monkeypatch.setitem(ATTENTIONS, "pallas", interpreted)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 33), dtype=np.int32)
    batch = {"tokens": tokens, "weights": np.full((2, 32), 1 / 64, np.float32)}
    results = {}
    for remat in ("none", "dots", "block", "full"):
        cfg = ModelConfig(
            2, 2, 32, 32, 64, dtype="float32", attn_pdrop=RATE, attention="pallas", remat=remat
        )
        params = jax.tree.map(lambda x: 5 * x, init_params(cfg, jax.random.key(0)))
        loss = language_modelling(cfg).loss
        value, gradient = jax.jit(jax.value_and_grad(loss))(params, batch, jax.random.key(7))
        results[remat] = {"loss": value, **named_leaves(gradient)}
    for remat in ("dots", "block", "full"):
        for name, found in results[remat].items():
            np.testing.assert_allclose(
                found, results["none"][name], rtol=1e-5, atol=1e-6, err_msg=f"{remat} {name}"
            )

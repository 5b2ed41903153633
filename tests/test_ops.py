"""The pure functions of the network against ten-line NumPy references in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model.ops import attention, causal_mask, dropout, gelu, layer_norm


def reference_layer_norm(x_BTD, scale_D, bias_D, eps=1e-5):
    x = np.asarray(x_BTD, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * np.float64(scale_D)
    return y if bias_D is None else y + np.float64(bias_D)


def reference_attention(q_BTHK, k_BSHK, v_BSHK, mask_TS):
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTHK, k_BSHK, v_BSHK))
    y_BTHK = np.zeros(q.shape[:3] + v.shape[3:])
    for b, t, h in np.ndindex(q.shape[:3]):
        allowed = np.flatnonzero(mask_TS[t])
        scores = k[b, allowed, h] @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        y_BTHK[b, t, h] = weights / weights.sum() @ v[b, allowed, h]
    return y_BTHK


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def queries_keys_values(time=6, keys=9, head_dim=4):
    q_BTHK = 2 * normal(2, time, 3, head_dim, seed=1)
    k_BSHK = 2 * normal(2, keys, 3, head_dim, seed=2)
    return q_BTHK, k_BSHK, normal(2, keys, 3, head_dim, seed=3)


def random_mask(time=6, keys=9):
    """Arbitrary positions, at least one in every row."""
    mask_TS = np.random.default_rng(4).random((time, keys)) < 0.5
    mask_TS[np.arange(time), np.arange(time)] = True
    return mask_TS


def test_gelu_is_the_tanh_form():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    wide = x.astype(np.float64)
    expected = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(gelu(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_matches_numpy(with_bias):
    x_BTD, scale_D = 3 * normal(2, 5, 48) + 1, normal(48, seed=1)
    bias_D = normal(48, seed=2) if with_bias else None
    y_BTD = layer_norm(jnp.asarray(x_BTD), scale_D, bias_D)
    assert y_BTD.dtype == jnp.float32
    expected = reference_layer_norm(x_BTD, scale_D, bias_D)
    np.testing.assert_allclose(y_BTD, expected, rtol=2e-6, atol=2e-6)


def test_layer_norm_survives_a_mean_far_above_the_spread():
    offsets_BTD = np.random.default_rng(0).integers(-3, 4, (2, 5, 64))
    x_BTD = (10_000 + offsets_BTD).astype(np.float32)  # every partial sum is exact in float32
    ones_D = np.ones(64, np.float32)
    expected = reference_layer_norm(x_BTD, ones_D, None)
    np.testing.assert_allclose(layer_norm(x_BTD, ones_D, None), expected, rtol=1e-6, atol=1e-6)


def test_layer_norm_adds_epsilon_to_the_variance():
    x_BTD = 1e-3 * normal(2, 5, 32)  # a variance of 1e-6, below the epsilon of 1e-5
    ones_D = np.ones(32, np.float32)
    y_BTD = layer_norm(x_BTD, ones_D, None)
    np.testing.assert_allclose(y_BTD, reference_layer_norm(x_BTD, ones_D, None), atol=1e-6)
    np.testing.assert_array_equal(layer_norm(jnp.ones((1, 1, 8)), jnp.ones(8), None), 0.0)


def test_bfloat16_layer_norm_keeps_float32_statistics():
    x_BTD = (50 + normal(2, 5, 256)).astype(jnp.bfloat16)
    scale_D, bias_D = normal(256, seed=1), normal(256, seed=2)
    y_BTD = layer_norm(jnp.asarray(x_BTD), scale_D, bias_D)
    in_float32 = layer_norm(jnp.asarray(x_BTD, jnp.float32), scale_D, bias_D)
    assert y_BTD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y_BTD, in_float32.astype(jnp.bfloat16))
    expected = reference_layer_norm(x_BTD, scale_D, bias_D)
    np.testing.assert_allclose(np.float64(y_BTD), expected, rtol=2**-8, atol=1e-5)


def test_the_causal_mask_shows_the_past_and_the_present():
    expected = [[s <= t for s in range(5)] for t in range(5)]
    np.testing.assert_array_equal(causal_mask(5), expected)
    assert causal_mask(5).dtype == bool


@pytest.mark.parametrize("mask_TS", [np.tri(6, 9, 3, bool), random_mask()], ids=["causal", "any"])
def test_attention_matches_numpy(mask_TS):
    q_BTHK, k_BSHK, v_BSHK = queries_keys_values()
    y_BTHK = attention(q_BTHK, k_BSHK, v_BSHK, mask_TS)
    expected = reference_attention(q_BTHK, k_BSHK, v_BSHK, mask_TS)
    np.testing.assert_allclose(y_BTHK, expected, rtol=1e-5, atol=1e-6)


def test_masked_positions_have_exactly_no_influence():
    q_BTHK, k_BSHK, v_BSHK = queries_keys_values()
    mask_TS = random_mask()
    mask_TS[:, [2, 7]] = False
    before = attention(q_BTHK, k_BSHK, v_BSHK, mask_TS)
    k_BSHK[:, [2, 7]] = 1e30
    v_BSHK[:, [2, 7]] = -1e30
    np.testing.assert_array_equal(attention(q_BTHK, k_BSHK, v_BSHK, mask_TS), before)

    one_hot_BSHS = np.broadcast_to(np.eye(9, dtype=np.float32)[None, :, None], (2, 9, 3, 9))
    weights_BTHS = np.asarray(attention(q_BTHK, k_BSHK, one_hot_BSHS, mask_TS))
    allowed = np.broadcast_to(mask_TS[None, :, None], weights_BTHS.shape)
    assert (weights_BTHS[~allowed] == 0).all()
    assert (weights_BTHS[allowed] > 0).all()
    np.testing.assert_allclose(weights_BTHS.sum(-1), 1, rtol=1e-6)


def test_no_gradient_reaches_keys_and_values_behind_the_mask():
    q_BTHK, k_BSHK, v_BSHK = queries_keys_values(time=9)
    probe_BHK = normal(2, 3, 4, seed=9)

    def output_at_4(k_BSHK, v_BSHK):
        return (attention(q_BTHK, k_BSHK, v_BSHK, causal_mask(9))[:, 4] * probe_BHK).sum()

    for grad in map(np.asarray, jax.grad(output_at_4, argnums=(0, 1))(k_BSHK, v_BSHK)):
        assert (grad[:, :5] != 0).all()
        assert (grad[:, 5:] == 0).all()


def test_bfloat16_attention_keeps_scores_and_softmax_in_float32():
    q_BTHK, k_BSHK, v_BSHK = (normal(2, 7, 3, 16, seed=i).astype(jnp.bfloat16) for i in range(3))
    q_BTHK[..., 0], k_BSHK[..., 0] = 16, 64  # 256 in every score, where bfloat16 counts by twos
    mask_TS = np.tri(7, dtype=bool)
    y_BTHK = attention(jnp.asarray(q_BTHK), jnp.asarray(k_BSHK), jnp.asarray(v_BSHK), mask_TS)
    assert y_BTHK.dtype == jnp.bfloat16
    expected = reference_attention(q_BTHK, k_BSHK, v_BSHK, mask_TS)
    np.testing.assert_allclose(np.float64(y_BTHK), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate):
    x = 1 + np.abs(normal(200, 500))
    y = np.asarray(dropout(jnp.asarray(x), rate, jax.random.key(0)))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)
    five_sigma = 5 * np.sqrt(rate * (1 - rate) / x.size)
    assert abs((~kept).mean() - rate) < five_sigma
    assert abs(kept.mean(0) - (1 - rate)).max() < np.sqrt(500) * five_sigma


def test_dropout_is_the_identity_without_a_key_or_a_rate():
    x = jnp.asarray(normal(4, 8))
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


def test_dropout_depends_on_its_key_and_keeps_the_type():
    x = jnp.ones((64, 64), jnp.bfloat16)
    draws = [dropout(x, 0.5, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert draws[0].dtype == jnp.bfloat16


def test_attention_drops_single_weights_and_scales_the_rest():
    q_BTHK, k_BSHK, _ = queries_keys_values(64, 64)
    one_hot_BSHS = np.broadcast_to(np.eye(64, dtype=np.float32)[None, :, None], (2, 64, 3, 64))
    mask_TS, key = causal_mask(64), jax.random.key(0)
    weights = np.asarray(attention(q_BTHK, k_BSHK, one_hot_BSHS, mask_TS))
    dropped = np.asarray(attention(q_BTHK, k_BSHK, one_hot_BSHS, mask_TS, 0.25, key))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], weights[kept] / 0.75, rtol=1e-5)
    seen = weights > 0
    assert abs(kept[seen].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / seen.sum())
    np.testing.assert_array_equal(
        attention(q_BTHK, k_BSHK, one_hot_BSHS, mask_TS, 0.25, None), weights
    )

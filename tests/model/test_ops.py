"""The pure functions of the network against ten-line NumPy references in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model.ops import dropout, gelu, gelu_erf, layer_norm


def reference_layer_norm(x_BTD, scale_D, bias_D, eps=1e-5):
    x = np.asarray(x_BTD, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * np.float64(scale_D)
    return y if bias_D is None else y + np.float64(bias_D)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def reference_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference_gelu_erf(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def slopes(f, x, dy, step=1e-5):
    """Gradient of `sum(f(x) * dy)` in `x` by central differences, element by element."""
    x, gradient = np.array(x, np.float64), np.zeros(np.shape(x))
    for i in np.ndindex(x.shape):
        centre = x[i]
        x[i] = centre + step
        above = (f(x) * dy).sum()
        x[i] = centre - step
        gradient[i] = (above - (f(x) * dy).sum()) / (2 * step)
        x[i] = centre
    return gradient


def pulled_back(f, dy, *inputs):
    """Gradients of `sum(f(inputs) * dy)` in all inputs, compiled."""
    return jax.jit(lambda dy, *inputs: jax.vjp(f, *inputs)[1](dy))(dy, *inputs)


def test_gelu_is_the_tanh_form():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    expected = reference_gelu(x.astype(np.float64))
    np.testing.assert_allclose(gelu(x), expected, rtol=1e-6, atol=1e-6)


def test_gelu_erf_is_the_exact_form():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    expected = reference_gelu_erf(x.astype(np.float64))
    np.testing.assert_allclose(gelu_erf(x), expected, rtol=1e-6, atol=1e-6)
    assert abs(gelu_erf(x) - gelu(x)).max() == pytest.approx(4.7e-4, rel=0.02)  # not the same


@pytest.mark.parametrize("ours", [gelu, gelu_erf])
def test_both_gelus_are_torch_s_with_gradients(ours):
    torch = pytest.importorskip("torch")
    approximate = {gelu: "tanh", gelu_erf: "none"}[ours]
    x, dy = 4 * normal(2, 64, 64), normal(2, 64, 64, seed=1)
    theirs = torch.from_numpy(x).requires_grad_()
    y = torch.nn.GELU(approximate)(theirs)
    y.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(ours(x), y.detach().numpy(), rtol=1e-6, atol=1e-6)
    (dx,) = pulled_back(ours, dy, x)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=1e-5, atol=3e-5)


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


def test_the_gradient_of_gelu_is_its_slope():
    x, dy = np.linspace(-12, 12, 4001, dtype=np.float32), normal(4001)
    (dx,) = pulled_back(gelu, dy, x)
    wide, h = x.astype(np.float64), 1e-5
    slope = (reference_gelu(wide + h) - reference_gelu(wide - h)) / (2 * h)
    # from about 4.9 on float32's tanh is 1 but for its last bit, which weighs 10 to 30 here
    np.testing.assert_allclose(dx, slope * dy, rtol=1e-5, atol=3e-5)
    (by_autodiff,) = pulled_back(lambda x: jax.nn.gelu(x, approximate=True), dy, x)
    np.testing.assert_allclose(dx, by_autodiff, rtol=1e-5, atol=3e-5)


def test_the_gradient_of_gelu_erf_is_its_slope():
    x, dy = np.linspace(-12, 12, 4001, dtype=np.float32), normal(4001)
    (dx,) = pulled_back(gelu_erf, dy, x)
    wide, h = x.astype(np.float64), 1e-5
    slope = (reference_gelu_erf(wide + h) - reference_gelu_erf(wide - h)) / (2 * h)
    np.testing.assert_allclose(dx, slope * dy, rtol=1e-5, atol=1e-6)
    (by_autodiff,) = pulled_back(lambda x: jax.nn.gelu(x, approximate=False), dy, x)
    np.testing.assert_allclose(dx, by_autodiff, rtol=1e-5, atol=1e-6)


def test_bfloat16_gelu_erf_is_the_float32_one_rounded():
    x_BTF, dy_BTF = (jnp.asarray(4 * normal(2, 5, 64, seed=i), jnp.bfloat16) for i in range(2))
    (dx_BTF,) = pulled_back(gelu_erf, dy_BTF, x_BTF)
    assert gelu_erf(x_BTF).dtype == dx_BTF.dtype == jnp.bfloat16
    x, dy = np.float64(x_BTF), np.float64(dy_BTF)
    expected = reference_gelu_erf(x)
    np.testing.assert_allclose(np.float64(gelu_erf(x_BTF)), expected, rtol=2**-8, atol=1e-6)
    slope = (reference_gelu_erf(x + 1e-5) - reference_gelu_erf(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(np.float64(dx_BTF), slope * dy, rtol=2**-8, atol=1e-6)


def test_bfloat16_gelu_stays_bfloat16_and_close():
    x_BTF, dy_BTF = (jnp.asarray(4 * normal(2, 5, 64, seed=i), jnp.bfloat16) for i in range(2))
    (dx_BTF,) = pulled_back(gelu, dy_BTF, x_BTF)
    assert gelu(x_BTF).dtype == dx_BTF.dtype == jnp.bfloat16
    x, dy = np.float64(x_BTF), np.float64(dy_BTF)
    # the tanh has bfloat16's 8 bits, and 1 + tanh no more where the tanh is near -1
    np.testing.assert_allclose(np.float64(gelu(x_BTF)), reference_gelu(x), rtol=0.02, atol=0.02)
    slope = (reference_gelu(x + 1e-5) - reference_gelu(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(np.float64(dx_BTF), slope * dy, rtol=0.02, atol=0.08)


@pytest.mark.parametrize("function", [gelu, gelu_erf])
def test_the_backward_pass_of_gelu_keeps_its_input_and_nothing_else(function):
    kept = jax.tree.leaves(jax.vjp(function, jnp.ones((4, 8)))[1])
    assert [x.shape for x in kept] == [(4, 8)]


def naive_layer_norm(x_BTD, scale_D, bias_D):
    centred = x_BTD - x_BTD.mean(-1, keepdims=True)
    y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    y = y * jnp.broadcast_to(scale_D, x_BTD.shape)
    return y if bias_D is None else y + jnp.broadcast_to(bias_D, x_BTD.shape)


@pytest.mark.parametrize("shape", [(2, 5, 24), (7, 24), (24,)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_gradients_of_layer_norm_are_its_slopes(shape, with_bias):
    x, dy, scale_D = 3 * normal(*shape) + 1, normal(*shape, seed=9), normal(24, seed=1)
    bias_D = normal(24, seed=2) if with_bias else None
    dx, dscale_D, dbias_D = pulled_back(layer_norm, dy, x, scale_D, bias_D)
    near = {"rtol": 1e-5, "atol": 5e-6}
    expected = slopes(lambda x: reference_layer_norm(x, scale_D, bias_D), x, dy)
    np.testing.assert_allclose(dx, expected, **near)
    expected_D = slopes(lambda scale: reference_layer_norm(x, scale, bias_D), scale_D, dy)
    np.testing.assert_allclose(dscale_D, expected_D, **near)
    if with_bias:
        np.testing.assert_allclose(dbias_D, dy.reshape(-1, 24).sum(0), **near)
    else:
        assert dbias_D is None
    by_autodiff = pulled_back(naive_layer_norm, dy, x, scale_D, bias_D)
    for gradient, other in zip((dx, dscale_D), by_autodiff[:2], strict=True):
        np.testing.assert_allclose(gradient, other, **near)


def test_bfloat16_layer_norm_has_float32_gradients_of_its_parameters():
    x_BTD, dy_BTD = (jnp.asarray(normal(4, 512, 16, seed=i), jnp.bfloat16) for i in range(2))
    scale_D, bias_D = normal(16, seed=3), normal(16, seed=4)
    dx_BTD, *of_parameters = pulled_back(layer_norm, dy_BTD, x_BTD, scale_D, bias_D)
    wide = [jnp.asarray(a, jnp.float32) for a in (dy_BTD, x_BTD, scale_D, bias_D)]
    dx_in_float32, *others = pulled_back(layer_norm, *wide)
    assert dx_BTD.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(dx_BTD), dx_in_float32, rtol=2**-8, atol=1e-6)
    for gradient, other in zip(of_parameters, others, strict=True):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, other, rtol=1e-6, atol=1e-5)


def test_the_backward_pass_of_layer_norm_keeps_its_input_and_two_numbers_a_row():
    kept = jax.tree.leaves(jax.vjp(layer_norm, jnp.ones((2, 3, 8)), jnp.ones(8), jnp.ones(8))[1])
    assert sorted(x.size for x in kept) == [6, 6, 8, 8, 48]


def test_the_gradient_of_dropout_is_its_own_mask():
    x, dy, key = normal(50, 60), normal(50, 60, seed=1), jax.random.key(3)
    dx = pulled_back(lambda x: dropout(x, 0.3, key), dy, x)[0]
    kept = np.asarray(dropout(jnp.ones((50, 60)), 0.3, key)) != 0
    np.testing.assert_allclose(dx, np.where(kept, dy / 0.7, 0), rtol=1e-6)


@pytest.mark.parametrize("rate", [2**-16, 1 - 2**-16])
def test_dropout_is_exact_at_extreme_rates(rate):
    kept = np.asarray(dropout(jnp.ones((1000, 1000)), rate, jax.random.key(0))) != 0
    rare = kept.sum() if rate > 0.5 else (~kept).sum()
    expected = 1e6 * 2**-16
    assert abs(rare - expected) < 5 * np.sqrt(expected)

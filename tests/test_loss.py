"""Cross-entropy against float64 NumPy: weighted sums of rows, finite for any finite logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.training.loss import cross_entropy_rows


def reference(logits_BTV, targets_BT, weights_BT):
    logits_BTV = np.asarray(logits_BTV, np.float64)
    shifted_BTV = logits_BTV - logits_BTV.max(-1, keepdims=True)
    log_p_BTV = shifted_BTV - np.log(np.exp(shifted_BTV).sum(-1, keepdims=True))
    log_p_BT = np.take_along_axis(log_p_BTV, targets_BT[..., None], -1)[..., 0]
    return -(log_p_BT * weights_BT).sum(1)


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    logits_BTV = 5 * rng.standard_normal((3, 7, 11), dtype=np.float32)
    targets_BT = rng.integers(0, 11, (3, 7), dtype=np.int32)
    weights_BT = rng.random((3, 7), dtype=np.float32) * rng.integers(0, 2, (3, 7))
    return logits_BTV, targets_BT, weights_BT.astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_match_numpy(example, dtype):
    logits_BTV, targets_BT, weights_BT = example
    logits_BTV = jnp.asarray(logits_BTV, dtype)
    loss_B = cross_entropy_rows(logits_BTV, targets_BT, weights_BT)
    assert (loss_B.shape, loss_B.dtype) == ((3,), jnp.float32)
    np.testing.assert_allclose(loss_B, reference(logits_BTV, targets_BT, weights_BT), rtol=1e-6)


def test_uniform_logits_cost_the_log_of_the_vocabulary_at_every_position():
    loss_B = cross_entropy_rows(jnp.zeros((2, 5, 96)), jnp.ones((2, 5), int), jnp.ones((2, 5)))
    np.testing.assert_allclose(loss_B, 5 * np.log(96), rtol=1e-6)


def test_positions_without_weight_do_not_count(example):
    logits_BTV, targets_BT, weights_BT = example
    ignored = weights_BT == 0
    assert 0 < ignored.sum() < ignored.size
    before = cross_entropy_rows(logits_BTV, targets_BT, weights_BT)
    others_BTV = np.where(ignored[..., None], -logits_BTV, logits_BTV)
    others_BT = np.where(ignored, (targets_BT + 1) % 11, targets_BT)
    np.testing.assert_array_equal(cross_entropy_rows(others_BTV, others_BT, weights_BT), before)
    np.testing.assert_array_equal(cross_entropy_rows(logits_BTV, targets_BT, 0 * weights_BT), 0.0)


def test_the_gradient_is_the_weighted_softmax_less_the_target(example):
    logits_BTV, targets_BT, weights_BT = example
    grad_BTV = jax.grad(lambda x: cross_entropy_rows(x, targets_BT, weights_BT).sum())(logits_BTV)
    p_BTV = np.exp(logits_BTV.astype(np.float64))
    p_BTV /= p_BTV.sum(-1, keepdims=True)
    expected = (p_BTV - np.eye(11)[targets_BT]) * weights_BT[..., None]
    np.testing.assert_allclose(grad_BTV, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("logits_V", "target", "expected"),
    [
        ([1e30, -1e30], 0, 0.0),
        ([1e30, -1e30], 1, 2e30),
        ([100.0, 0.0], 1, 100.0),
        ([3.0, -1e9, -1e9], 0, 0.0),
    ],
)
def test_extreme_logits_have_finite_losses_and_gradients(logits_V, target, expected):
    logits_BTV, targets_BT = jnp.asarray([[logits_V]]), jnp.asarray([[target]])
    loss, grad = jax.value_and_grad(
        lambda x: cross_entropy_rows(x, targets_BT, jnp.ones((1, 1))).sum()
    )(logits_BTV)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(grad).all()

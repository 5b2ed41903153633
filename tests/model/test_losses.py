"""Cross-entropy against float64 NumPy, and in chunks against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.model.gpt import logits
from gptjax.model.losses import cross_entropy, cross_entropy_rows, token_losses


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


VOCAB, TABLE, WIDTH = 37, 40, 12  # three rows of the head are padding
CHUNKS = [1, 7, 15, 100]  # of 15 tokens: each alone, not dividing, exactly all, more than all


def head_inputs(scale=1.0, dtype=jnp.float32):
    """What the head reads, the head, targets and weights."""
    rng = np.random.default_rng(1)
    x_BTD = jnp.asarray(rng.standard_normal((3, 5, WIDTH)), dtype)
    head_VD = jnp.asarray(scale * rng.standard_normal((TABLE, WIDTH)), jnp.float32)
    targets_BT = jnp.asarray(rng.integers(0, VOCAB, (3, 5)), jnp.int32)
    weights_BT = rng.random((3, 5)) * (rng.random((3, 5)) < 0.8)
    return x_BTD, head_VD, targets_BT, jnp.asarray(weights_BT, jnp.float32)


def plain(x_BTD, head_VD, targets_BT, weights_BT):
    return cross_entropy_rows(logits(x_BTD, head_VD, VOCAB), targets_BT, weights_BT).sum()


def with_gradients(loss, x_BTD, head_VD, targets_BT, weights_BT):
    """The loss and its gradients in `x`, head and weights, of a loss that counts threefold."""

    def threefold(x_BTD, head_VD, weights_BT):
        return 3 * loss(x_BTD, head_VD, targets_BT, weights_BT)

    both = jax.jit(jax.value_and_grad(threefold, argnums=(0, 1, 2)))
    value, gradients = both(x_BTD, head_VD, weights_BT)
    return value, *gradients


def in_chunks(chunk_tokens):
    return lambda *arrays: cross_entropy(*arrays, VOCAB, chunk_tokens)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_chunks_have_the_plain_loss_and_gradients(chunk_tokens):
    inputs = head_inputs()
    results = with_gradients(in_chunks(chunk_tokens), *inputs)
    for result, expected in zip(results, with_gradients(plain, *inputs), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=2e-6)
    assert (np.asarray(results[2])[VOCAB:] == 0).all()
    without_gradients = 3 * in_chunks(chunk_tokens)(*inputs)
    np.testing.assert_allclose(without_gradients, results[0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_tokens", [4, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_leaving_out_what_has_no_weight_changes_nothing(chunk_tokens, share):
    x_BTD, head_VD, targets_BT, weights_BT = head_inputs()
    weights_BT = weights_BT * (np.random.default_rng(3).random(weights_BT.shape) < share)
    others_BT = jnp.where(weights_BT == 0, (targets_BT + 5) % VOCAB, targets_BT)

    def only_weighted(*arrays):
        return cross_entropy(*arrays, VOCAB, chunk_tokens, only_weighted=True)

    expected = with_gradients(plain, x_BTD, head_VD, targets_BT, weights_BT)
    for targets in (targets_BT, others_BT):
        results = with_gradients(only_weighted, x_BTD, head_VD, targets, weights_BT)
        for result, other in zip(results[:3], expected, strict=False):
            np.testing.assert_allclose(result, other, rtol=1e-6, atol=2e-6)
        losses_BT = token_losses(
            x_BTD, head_VD, targets, VOCAB, chunk_tokens, weights_BT=weights_BT
        )
        np.testing.assert_allclose(3 * (losses_BT * weights_BT).sum(), expected[0], rtol=1e-6)


def test_chunks_without_weight_are_not_computed():
    """Features that are not numbers there would spoil every sum."""
    x_BTD, head_VD, targets_BT, _ = head_inputs()
    x_BTD = x_BTD.at[0].set(jnp.nan)
    weights_BT = jnp.zeros((3, 5)).at[2].set(1.0)  # one chunk of three
    loss = cross_entropy(x_BTD, head_VD, targets_BT, weights_BT, VOCAB, 5, only_weighted=True)
    expected = plain(x_BTD[2:], head_VD, targets_BT[2:], weights_BT[2:])
    assert jnp.isnan(in_chunks(5)(x_BTD, head_VD, targets_BT, weights_BT))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_the_losses_of_tokens_match_numpy(chunk_tokens):
    x_BTD, head_VD, targets_BT, _ = head_inputs()
    losses_BT = token_losses(x_BTD, head_VD, targets_BT, VOCAB, chunk_tokens)
    assert (losses_BT.shape, losses_BT.dtype) == ((3, 5), jnp.float32)
    logits_BTV = np.float64(x_BTD) @ np.float64(head_VD[:VOCAB]).T
    for t in range(5):
        one = np.eye(5)[[t] * 3]
        expected_B = reference(logits_BTV, np.asarray(targets_BT), one)
        np.testing.assert_allclose(losses_BT[:, t], expected_B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [7, 100])
@pytest.mark.parametrize("padding_logit", [-1e4, 1e4])
def test_padding_of_the_vocabulary_has_no_say(chunk_tokens, padding_logit):
    x_BTD, head_VD, targets_BT, weights_BT = head_inputs()
    x_BTD = x_BTD.at[..., 0].set(1)
    spoilt_VD = head_VD.at[VOCAB:].set(0).at[VOCAB:, 0].set(padding_logit)
    results = with_gradients(in_chunks(chunk_tokens), x_BTD, spoilt_VD, targets_BT, weights_BT)
    expected = with_gradients(in_chunks(chunk_tokens), x_BTD, head_VD, targets_BT, weights_BT)
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, other, rtol=1e-6, atol=1e-6)
    assert (np.asarray(results[2])[VOCAB:] == 0).all()
    losses_BT = token_losses(x_BTD, spoilt_VD, targets_BT, VOCAB, chunk_tokens)
    np.testing.assert_allclose((losses_BT * weights_BT).sum() * 3, expected[0], rtol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [7, 100])
def test_real_logits_far_below_the_padding_still_count(chunk_tokens):
    """exp(-200) is 0 in float32: only the largest *real* logit may be taken off before it."""
    x_BTD, head_VD, targets_BT, weights_BT = head_inputs()
    x_BTD = x_BTD.at[..., 0].set(1)
    sunk_VD = head_VD.at[:, 0].add(-200).at[VOCAB:].set(0)
    results = with_gradients(in_chunks(chunk_tokens), x_BTD, sunk_VD, targets_BT, weights_BT)
    lifted = with_gradients(plain, x_BTD, head_VD, targets_BT, weights_BT)
    np.testing.assert_allclose(results[0], lifted[0], rtol=1e-5)
    np.testing.assert_allclose(results[2][:VOCAB], lifted[2][:VOCAB], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk_tokens", [7, 100])
def test_without_weights_loss_and_gradients_are_zero(chunk_tokens):
    x_BTD, head_VD, targets_BT, weights_BT = head_inputs(scale=50)
    nothing = with_gradients(
        in_chunks(chunk_tokens), x_BTD, head_VD, targets_BT, jnp.zeros_like(weights_BT)
    )
    for result in nothing[:3]:
        np.testing.assert_array_equal(result, 0)
    dx_BTD = with_gradients(in_chunks(chunk_tokens), x_BTD, head_VD, targets_BT, weights_BT)[1]
    ignored = np.asarray(weights_BT) == 0
    assert 0 < ignored.sum() < ignored.size
    assert (np.asarray(dx_BTD)[ignored] == 0).all()


@pytest.mark.parametrize("chunk_tokens", [7, 100])
def test_bfloat16_features_lose_little(chunk_tokens):
    inputs = head_inputs(dtype=jnp.bfloat16)
    results = with_gradients(in_chunks(chunk_tokens), *inputs)
    assert [result.dtype for result in results] == [jnp.float32, jnp.bfloat16, *[jnp.float32] * 2]
    wide = with_gradients(plain, inputs[0].astype(jnp.float32), *inputs[1:])
    for result, expected in zip(results, wide, strict=True):
        distance = np.linalg.norm(np.float64(result) - np.float64(expected))
        assert distance < 0.01 * np.linalg.norm(expected)


def compiled_head(width, chunk_tokens):
    """Value and gradient of a tied head over 8 x 1024 tokens of GPT-2's vocabulary, not run.

    `None` chunks is the plain loss.
    """

    def loss(table_VD, tokens_BT, weights_BT):
        inputs = table_VD[tokens_BT[:, :-1]], table_VD, tokens_BT[:, 1:], weights_BT
        if chunk_tokens is None:
            logits_BTV = logits(*inputs[:2], 50257)
            return cross_entropy_rows(logits_BTV, *inputs[2:]).sum()
        return cross_entropy(*inputs, 50257, chunk_tokens)

    arrays = [((50304, width), jnp.float32), ((8, 1025), jnp.int32), ((8, 1024), jnp.float32)]
    abstract = (jax.ShapeDtypeStruct(*array) for array in arrays)
    return jax.jit(jax.value_and_grad(loss)).lower(*abstract).compile()


def test_chunks_save_two_buffers_of_all_logits():
    all_logits = 4 * 8 * 1024 * 50304
    before, after = (
        compiled_head(64, chunk_tokens).memory_analysis().temp_size_in_bytes
        for chunk_tokens in (None, 2048)
    )
    assert before - after > 2 * all_logits


def test_chunks_need_no_more_products():
    """XLA counts a loop's body once, so four chunks are counted as one of them."""
    tokens = 8 * 1024
    products = 3 * 2 * tokens * 50304 * 768  # logits, and the gradients of both their factors
    flops = {c: compiled_head(768, c).cost_analysis()["flops"] for c in (None, tokens, 2048)}
    assert flops[None] == pytest.approx(products, rel=0.02)
    assert flops[tokens] == pytest.approx(flops[None], rel=0.05)
    assert 4 * flops[2048] == pytest.approx(flops[None], rel=0.05)

"""Every kind of attention, against per-query NumPy loops and autodiff of a naive version."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import (
    causal_inputs,
    distances,
    gradients,
    normal,
    reference_attention,
    rounding_gradients,
)

from gptjax.model import attention
from gptjax.model.attention import ATTENTIONS, causal_mask, cudnn_problem

LENGTHS = [1, 5, 64, 65, 256, 300, pytest.param(777, marks=pytest.mark.slow)]
PORTABLE = ["xla", "blockwise", "auto"]
DROPPING = 260  # tokens: in blockwise two segments of two blocks each, and a third cut short


def attend(q_BHTK, k_BHSK, v_BHSK, mask_BTS, rate=0.0, key=None):
    """`attention.attend` with the heads first, as the loops in NumPy have them."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BHTK, k_BHSK, v_BHSK))
    return attention.attend(q, k, v, rate, key, mask_BTS).swapaxes(1, 2)


def naive_attention(q_BTHK, k_BTHK, v_BTHK, factors_BHTS=1.0):
    """Causal attention as one writes it first, each weight multiplied by a given factor."""
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) / np.sqrt(q_BTHK.shape[-1])
    mask_TS = np.tri(q_BTHK.shape[1], dtype=bool)
    weights_BHTS = jax.nn.softmax(jnp.where(mask_TS[None, None], scores_BHTS, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS * factors_BHTS, v_BTHK)


def queries_keys_values(time=6, keys=9, head_dim=4):
    q_BHTK = 2 * normal(2, 3, time, head_dim, seed=1)
    k_BHSK = 2 * normal(2, 3, keys, head_dim, seed=2)
    return q_BHTK, k_BHSK, normal(2, 3, keys, head_dim, seed=3)


def random_mask(time=6, keys=9):
    """Arbitrary positions, at least one in every row."""
    mask_TS = np.random.default_rng(4).random((time, keys)) < 0.5
    mask_TS[np.arange(time), np.arange(time)] = True
    return mask_TS


def one_hot_values(time):
    """Values of which attention makes its own weights: [2, 3, S, S]."""
    return np.broadcast_to(np.eye(time, dtype=np.float32)[None, None], (2, 3, time, time))


def test_the_causal_mask_shows_the_past_and_the_present():
    expected = [[s <= t for s in range(5)] for t in range(5)]
    np.testing.assert_array_equal(causal_mask(5), expected)
    assert causal_mask(5).dtype == bool


@pytest.mark.parametrize("mask_TS", [np.tri(6, 9, 3, bool), random_mask()], ids=["causal", "any"])
def test_attend_matches_numpy(mask_TS):
    q_BHTK, k_BHSK, v_BHSK = queries_keys_values()
    y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, mask_TS[None])
    expected = reference_attention(q_BHTK, k_BHSK, v_BHSK, mask_TS)
    np.testing.assert_allclose(y_BHTK, expected, rtol=1e-5, atol=1e-6)


def test_masked_positions_have_exactly_no_influence():
    q_BHTK, k_BHSK, v_BHSK = queries_keys_values()
    mask_TS = random_mask()
    mask_TS[:, [2, 7]] = False
    before = attend(q_BHTK, k_BHSK, v_BHSK, mask_TS[None])
    k_BHSK[:, :, [2, 7]] = 1e30
    v_BHSK[:, :, [2, 7]] = -1e30
    np.testing.assert_array_equal(attend(q_BHTK, k_BHSK, v_BHSK, mask_TS[None]), before)

    weights_BHTS = np.asarray(attend(q_BHTK, k_BHSK, one_hot_values(9), mask_TS[None]))
    allowed = np.broadcast_to(mask_TS[None, None], weights_BHTS.shape)
    assert (weights_BHTS[~allowed] == 0).all()
    assert (weights_BHTS[allowed] > 0).all()
    np.testing.assert_allclose(weights_BHTS.sum(-1), 1, rtol=1e-6)


def test_no_gradient_reaches_keys_and_values_behind_the_mask():
    q_BHTK, k_BHSK, v_BHSK = queries_keys_values(time=9)
    probe_BHK = normal(2, 3, 4, seed=9)

    def output_at_4(k_BHSK, v_BHSK):
        return (attend(q_BHTK, k_BHSK, v_BHSK, causal_mask(9)[None])[:, :, 4] * probe_BHK).sum()

    for grad in map(np.asarray, jax.grad(output_at_4, argnums=(0, 1))(k_BHSK, v_BHSK)):
        assert (grad[:, :, :5] != 0).all()
        assert (grad[:, :, 5:] == 0).all()


def test_bfloat16_attention_keeps_scores_and_softmax_in_float32():
    q_BHTK, k_BHSK, v_BHSK = (normal(2, 3, 7, 16, seed=i).astype(jnp.bfloat16) for i in range(3))
    q_BHTK[..., 0], k_BHSK[..., 0] = 16, 64  # 256 in every score, where bfloat16 counts by twos
    mask_TS = np.tri(7, dtype=bool)
    y_BHTK = attend(jnp.asarray(q_BHTK), jnp.asarray(k_BHSK), jnp.asarray(v_BHSK), mask_TS[None])
    assert y_BHTK.dtype == jnp.bfloat16
    expected = reference_attention(q_BHTK, k_BHSK, v_BHSK, mask_TS)
    np.testing.assert_allclose(np.float64(y_BHTK), expected, rtol=2**-7, atol=2**-7)


def test_attend_drops_single_weights_and_scales_the_rest():
    q_BHTK, k_BHSK, _ = queries_keys_values(64, 64)
    mask_BTS, key = causal_mask(64)[None], jax.random.key(0)
    one_hot = one_hot_values(64)
    weights = np.asarray(attend(q_BHTK, k_BHSK, one_hot, mask_BTS))
    dropped = np.asarray(attend(q_BHTK, k_BHSK, one_hot, mask_BTS, 0.25, key))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], weights[kept] / 0.75, rtol=1e-5)
    seen = weights > 0
    assert abs(kept[seen].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / seen.sum())
    np.testing.assert_array_equal(attend(q_BHTK, k_BHSK, one_hot, mask_BTS, 0.25, None), weights)


@pytest.mark.parametrize("time", LENGTHS)
def test_every_way_of_attending_has_numpys_values_and_the_naive_gradients(time):
    inputs, dy_BTHK = causal_inputs(time), normal(2, time, 3, 8, seed=9)
    heads_first = (x.swapaxes(1, 2) for x in inputs)
    expected = reference_attention(*heads_first, np.tri(time, dtype=bool)).swapaxes(1, 2)
    naive = gradients(naive_attention, dy_BTHK, *inputs)
    for name in PORTABLE:
        y_BTHK = jax.jit(ATTENTIONS[name])(*inputs)
        np.testing.assert_allclose(y_BTHK, expected, atol=1e-5, err_msg=name)
        for gradient, other in zip(
            gradients(ATTENTIONS[name], dy_BTHK, *inputs), naive, strict=True
        ):
            np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-5, err_msg=name)


def test_auto_is_blockwise_where_that_pays():
    for time, expected in ((255, "xla"), (256, "blockwise"), (300, "blockwise")):
        q = jax.ShapeDtypeStruct((2, time, 3, 8), jnp.float32)
        traced = {name: str(jax.make_jaxpr(ATTENTIONS[name])(q, q, q)) for name in PORTABLE}
        assert traced["auto"] == traced[expected]
        assert traced["xla"] != traced["blockwise"]


@pytest.mark.parametrize("name", ["xla", "blockwise"])
def test_no_position_sees_a_later_one(name):
    inputs = causal_inputs(300)
    run = jax.jit(ATTENTIONS[name])
    before = np.asarray(run(*inputs))
    for t in (1, 63, 64, 127, 128, 200, 299):
        changed = tuple(x.copy() for x in inputs)
        for x in changed:
            x[:, t:] = 7 - x[:, t:]
        after = np.asarray(run(*changed))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).all()


@pytest.mark.parametrize("name", ["xla", "blockwise"])
def test_bfloat16_is_close_and_stays_bfloat16(name):
    inputs = tuple(jnp.asarray(x, jnp.bfloat16) for x in causal_inputs(300))
    dy_BTHK = jnp.asarray(normal(2, 300, 3, 8, seed=9), jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in inputs]
    results = (ATTENTIONS[name](*inputs), *gradients(ATTENTIONS[name], dy_BTHK, *inputs))
    expected = (
        naive_attention(*wide),
        *gradients(naive_attention, dy_BTHK.astype(jnp.float32), *wide),
    )
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == jnp.bfloat16
        distance = np.linalg.norm(np.float64(result) - np.float64(other))
        assert distance < 0.01 * np.linalg.norm(other)


def autodiff_attention(q_BTHK, k_BTHK, v_BTHK):
    """`xla_attention` with the gradients of autodiff, whose products have a float32 factor."""
    q_BHTK, k_BHTK, v_BHTK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    scores_BHTS = jnp.einsum(
        "bhtk,bhsk->bhts",
        q_BHTK * q_BHTK.shape[-1] ** -0.5,
        k_BHTK,
        preferred_element_type=jnp.float32,
    )
    mask_TS = causal_mask(q_BTHK.shape[1])[None, None]
    weights_BHTS = jax.nn.softmax(jnp.where(mask_TS, scores_BHTS, -jnp.inf))
    y_BHTK = jnp.einsum("bhts,bhsk->bhtk", weights_BHTS.astype(v_BHTK.dtype), v_BHTK)
    return y_BHTK.swapaxes(1, 2)


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_products_of_the_backward_pass_are_no_less_exact_than_autodiff(dtype, head_dim):
    inputs = [jnp.asarray(x, dtype) for x in causal_inputs(300, head_dim=head_dim)]
    dy_BTHK = jnp.asarray(normal(2, 300, 3, head_dim, seed=9), dtype)
    exact = gradients(naive_attention, *(x.astype(jnp.float32) for x in (dy_BTHK, *inputs)))
    narrow, autodiff = (
        distances(rounding_gradients(attend, dy_BTHK, *inputs), exact)
        for attend in (ATTENTIONS["xla"], autodiff_attention)
    )
    # which elements are rounded up and which down is chance: a hundredth of the error
    assert (narrow <= 1.01 * autodiff).all(), (narrow, autodiff)


@cache
def dropped_weights(name, rate, key_seed=5):
    """What is left of the causal weights of a way of attending: [2, 3, T, T], and all of them."""
    q, k, _ = causal_inputs(DROPPING, head_dim=DROPPING)
    one_hot = one_hot_values(DROPPING).swapaxes(1, 2)
    run = jax.jit(ATTENTIONS[name], static_argnums=3)
    left = run(q, k, one_hot, rate, jax.random.key(key_seed))
    every = run(q, k, one_hot, rate, None)
    return np.asarray(left).swapaxes(1, 2), np.asarray(every).swapaxes(1, 2)


@pytest.mark.parametrize("name", ["xla", "blockwise"])
def test_weights_are_dropped_at_their_rate_independently(name):
    left, every = dropped_weights(name, 0.25)
    seen, kept = every > 0, left != 0
    np.testing.assert_array_equal(seen[0, 0], np.tri(DROPPING, dtype=bool))
    np.testing.assert_allclose(left[kept], every[kept] / 0.75, rtol=1e-5)
    assert abs(kept[seen].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / seen.sum())
    # rows, heads and blocks of queries drop apart: pairs agree as often as independent draws do
    blocks = [kept[:, :, start : start + 64, :64] for start in (64, 128, 192)]
    for one, other in (
        (blocks[0][0], blocks[0][1]),
        (blocks[0][:, 0], blocks[0][:, 1]),
        (blocks[0], blocks[1]),
        (blocks[1], blocks[2]),
        (blocks[2], kept[:, :, 192:256, 64:128]),
    ):
        agreement = (one == other).mean()
        assert abs(agreement - (0.75**2 + 0.25**2)) < 5 * np.sqrt(0.25 / one.size)


@pytest.mark.parametrize("name", ["xla", "blockwise"])
def test_the_backward_pass_drops_the_same_weights(name):
    left, _ = dropped_weights(name, 0.25)
    factors_BHTS = (left != 0) / np.float32(0.75)
    inputs = causal_inputs(DROPPING, head_dim=DROPPING)
    dy_BTHK, key = normal(2, DROPPING, 3, DROPPING, seed=9), jax.random.key(5)

    def dropping(q, k, v):
        return ATTENTIONS[name](q, k, v, 0.25, key)

    def with_factors(q, k, v):
        return naive_attention(q, k, v, factors_BHTS)

    np.testing.assert_allclose(dropping(*inputs), with_factors(*inputs), atol=1e-5)
    expected = gradients(with_factors, dy_BTHK, *inputs)
    for gradient, other in zip(gradients(dropping, dy_BTHK, *inputs), expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["xla", "blockwise"])
def test_the_mask_follows_the_key_and_no_key_means_none(name):
    left, every = dropped_weights(name, 0.25)
    assert ((left != 0) != (dropped_weights(name, 0.25, key_seed=6)[0] != 0)).any()
    np.testing.assert_array_equal(dropped_weights(name, 0.0)[0], every)


def test_blockwise_needs_a_fraction_of_the_memory():
    q_BTHK = jax.ShapeDtypeStruct((1, 2048, 4, 32), jnp.float32)
    temporary = {}
    for name in ("xla", "blockwise"):
        gradient = jax.grad(lambda *qkv, name=name: ATTENTIONS[name](*qkv).sum(), (0, 1, 2))
        analysis = jax.jit(gradient).lower(q_BTHK, q_BTHK, q_BTHK).compile().memory_analysis()
        temporary[name] = analysis.temp_size_in_bytes
    all_weights = 4 * 4 * 2048**2
    assert temporary["xla"] > all_weights
    assert temporary["blockwise"] < all_weights / 4
    assert temporary["blockwise"] < temporary["xla"] / 10


def test_cudnn_refuses_to_drop_weights():
    q_BTHK, _, _ = causal_inputs(8)
    with pytest.raises(ValueError, match="cannot drop weights: use xla or blockwise"):
        ATTENTIONS["cudnn"](q_BTHK, q_BTHK, q_BTHK, 0.1, jax.random.key(0))


def test_without_a_gpu_cudnn_has_a_problem_in_words(monkeypatch):
    assert "this is cpu" in str(cudnn_problem(64, 1024, "bfloat16"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    problem = cudnn_problem(64, 1024, "bfloat16")
    assert problem
    assert "\n" not in problem


@pytest.mark.parametrize(("slope", "problem"), [(2.0, None), (np.nan, "gradients are not finite")])
def test_cudnn_has_no_problem_where_it_runs_with_finite_gradients(monkeypatch, slope, problem):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "cudnn_attention", lambda q, k, v: slope * q * k * v)
    answer = cudnn_problem(64, 128, "bfloat16")
    assert answer is None if problem is None else problem in str(answer)


def test_cudnn_lowers_for_gpus_to_its_causal_kernels(monkeypatch):
    """JAX asks for the installed cuDNN while tracing; with an answer it lowers without one."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")  # nothing public asks
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    q_BTHK = jax.ShapeDtypeStruct((2, 128, 3, 64), jnp.bfloat16)

    def total(q, k, v):
        return ATTENTIONS["cudnn"](q, k, v, 0.1, None).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q_BTHK, q_BTHK, q_BTHK)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @__cudnn" in line]
    assert [("Backward" in call) for call in calls] == [False, True]
    for call in calls:
        assert r"mask_type\22: \22CAUSAL" in call
        assert r"fmha_scale\22: 0.125" in call
        assert r"dropout_rate\22: 0" in call
    assert "exponential" not in text

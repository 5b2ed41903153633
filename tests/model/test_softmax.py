"""The softmax of the logits in one pass, as GPUs compute it, and in three, as CPUs do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.cluster.mesh import make_mesh
from gptjax.model import softmax
from gptjax.model.losses import cross_entropy, cross_entropy_rows
from gptjax.model.parallel import copy_to_tensor
from gptjax.model.places import TENSOR, ModelSharding

ROWS, COLUMNS = 6, 40
INFINITE = float("-inf")


@pytest.fixture(params=["_in_passes", "_in_one_pass"])
def form(request, monkeypatch):
    """Both forms, each as the one that this machine takes."""
    chosen = getattr(softmax, request.param)
    monkeypatch.setattr(softmax, "_in_passes", chosen)
    return chosen


def logits_and_targets(scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits_MV = scale * rng.standard_normal((ROWS, COLUMNS), np.float32)
    return logits_MV, rng.integers(0, COLUMNS, ROWS, dtype=np.int32)


def hidden_head(logits_MV: np.ndarray) -> np.ndarray:
    logits_MV[:, :7] = -np.inf
    return logits_MV


def hidden_tail(logits_MV: np.ndarray) -> np.ndarray:
    logits_MV[:, -7:] = -np.inf
    return logits_MV


def ascending(logits_MV: np.ndarray) -> np.ndarray:
    return np.sort(logits_MV)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e30])
@pytest.mark.parametrize("change", [np.copy, hidden_head, hidden_tail, ascending])
def test_the_numbers_of_a_row_match_float64(form, scale, change):
    logits_MV, targets_M = logits_and_targets(scale)
    logits_MV = change(logits_MV)
    (top_M, total_M, target_logit_M), weights_MV = jax.jit(form)(logits_MV, targets_M)
    wide_MV = np.float64(logits_MV)
    expected_MV = np.exp(wide_MV - wide_MV.max(1, keepdims=True))
    np.testing.assert_array_equal(top_M, logits_MV.max(1))
    np.testing.assert_allclose(total_M, expected_MV.sum(1), rtol=2e-6)
    np.testing.assert_array_equal(target_logit_M, logits_MV[np.arange(ROWS), targets_M])
    np.testing.assert_allclose(weights_MV, expected_MV, rtol=1e-5, atol=1e-30)


def test_a_row_without_any_logit_counts_nothing_and_is_a_number(form):
    logits_MV, targets_M = np.full((2, 3), -np.inf, np.float32), np.int32([0, 2])
    (top_M, total_M, target_logit_M), weights_MV = form(logits_MV, targets_M)
    assert np.isfinite(top_M).all()
    assert (np.asarray(weights_MV) == 0).all()
    # what is joined to it is left alone
    others = jnp.float32([1.0, -2.0]), jnp.float32([5.0, 6.0]), jnp.float32([0.5, INFINITE])
    joined = softmax._joined((top_M, total_M, target_logit_M), others)
    for found, expected in zip(joined, others, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", [-1, COLUMNS, 2 * COLUMNS])
def test_a_target_that_is_elsewhere_is_not_found(form, target):
    logits_MV, _ = logits_and_targets(1.0)
    (_, _, target_logit_M), _ = form(logits_MV, np.full(ROWS, target, np.int32))
    assert (np.asarray(target_logit_M) == -np.inf).all()


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_what_is_not_a_number_stays_so(form, spoilt):
    logits_MV, targets_M = logits_and_targets(1.0)
    logits_MV[2, 3] = spoilt
    (top_M, total_M, target_logit_M), weights_MV = form(logits_MV, targets_M)
    loss_M = np.log(total_M) + top_M - target_logit_M
    assert np.flatnonzero(~np.isfinite(loss_M)).tolist() == [2]
    assert np.isnan(np.asarray(weights_MV / total_M[:, None])[2]).any()


@pytest.mark.parametrize("n_vocab", [5, 16])
def test_devices_divide_a_vocabulary_that_does_not_reach_all_of_them(form, n_vocab):
    """Of 8 devices with 2 rows each, 5 rows leave five with nothing but padding."""
    rng, split = np.random.default_rng(2), ModelSharding(tensor=8)
    x_BTD = jnp.asarray(rng.standard_normal((2, 4, 6)), jnp.float32)
    head_VD = jnp.asarray(3 * rng.standard_normal((16, 6)), jnp.float32)
    targets_BT = jnp.asarray(rng.integers(0, n_vocab, (2, 4)), jnp.int32)
    weights_BT = jnp.asarray(rng.random((2, 4)), jnp.float32)

    def divided(x_BTD, head_VD):
        inputs = copy_to_tensor(x_BTD, split), head_VD, targets_BT, weights_BT
        return cross_entropy(*inputs, n_vocab, 3, split)

    def plain(x_BTD, head_VD):
        logits_BTV = x_BTD @ head_VD[:n_vocab].T
        return cross_entropy_rows(logits_BTV, targets_BT, weights_BT).sum()

    places = P(), P(TENSOR)
    sharded = jax.shard_map(
        jax.value_and_grad(divided, (0, 1)),
        mesh=make_mesh(8, split),
        in_specs=places,
        out_specs=(P(), places),
    )
    found, expected = (
        jax.jit(sharded)(x_BTD, head_VD),
        jax.value_and_grad(plain, (0, 1))(x_BTD, head_VD),
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("platform", "reductions"), [("cuda", 1), ("cpu", 2)])
def test_gpus_reduce_all_logits_once(platform, reductions):
    logits = f"tensor<{ROWS}x{COLUMNS}xf32>"
    head = jax.ShapeDtypeStruct((COLUMNS, 8), jnp.float32)
    x, targets = (
        jax.ShapeDtypeStruct((ROWS, 8), jnp.float32),
        jax.ShapeDtypeStruct((ROWS,), jnp.int32),
    )
    traced = jax.jit(softmax.softmax_losses, static_argnums=3).trace(x, head, targets, COLUMNS)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(rf"stablehlo.reduce\(.*{re.escape(logits)}", program)
    assert len(found) == reductions

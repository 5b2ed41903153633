"""Gradients that are not finite change only counters, and scaling the loss changes nothing.

Clipping is proven against NumPy, and the loss scale against its rules; the chain around AdamW is
test_optimizer's.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from gptjax.cluster.mesh import DATA, make_mesh
from gptjax.training.guard import GuardState, clip, skip_unless_finite, with_loss_scale

GRADIENTS = {"a": np.float32([[0.3, -1.2], [0.5, 4.0]]), "b": np.float32([2.5, -0.01, 1e-3])}
NORM = math.sqrt(sum(np.square(np.float64(g)).sum() for g in GRADIENTS.values()))
POISONED = {"a": np.float32([[0.3, -1.2], [np.nan, 4.0]]), "b": GRADIENTS["b"]}


def guarded(dynamic: bool = False, max_norm: float | None = None):
    return skip_unless_finite(optax.chain(clip(max_norm), optax.trace(0.5)), dynamic)


def scaled(gradients: dict, scale: float) -> dict:
    return {name: g * np.float32(scale) for name, g in gradients.items()}


def assert_bitwise_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, expected)


def scale_of(state: GuardState) -> float:
    return float(optax.tree.get(state, "loss_scale"))


@pytest.mark.parametrize("share", [1e-3, 0.5, 0.999])
def test_gradients_above_the_norm_are_shrunk_to_it_and_the_norm_before_is_recorded(share):
    optimizer = guarded(max_norm=share * NORM)
    updates, state = jax.jit(optimizer.update)(GRADIENTS, optimizer.init(GRADIENTS))
    for name, g in GRADIENTS.items():
        np.testing.assert_allclose(updates[name], np.float64(g) * share, rtol=1e-6)
    assert float(optax.tree.get(state, "grad_norm")) == pytest.approx(NORM, rel=1e-6)


@pytest.mark.parametrize("max_norm", [NORM * 1.0001, 100.0, None])
def test_gradients_within_the_norm_are_the_same_bit_for_bit(max_norm):
    optimizer = guarded(max_norm=max_norm)
    updates, state = jax.jit(optimizer.update)(GRADIENTS, optimizer.init(GRADIENTS))
    assert_bitwise_same(updates, jax.tree.map(jnp.asarray, GRADIENTS))
    assert float(optax.tree.get(state, "grad_norm")) == pytest.approx(NORM, rel=1e-6)


def test_a_norm_equal_to_the_largest_does_not_clip_and_a_gradient_of_zero_stays_zero():
    optimizer, equal = guarded(max_norm=5.0), {"a": np.float32([[3.0]]), "b": np.float32([4.0])}
    updates, _ = jax.jit(optimizer.update)(equal, optimizer.init(equal))
    assert_bitwise_same(updates, jax.tree.map(jnp.asarray, equal))
    nothing = scaled(equal, 0.0)
    updates, state = jax.jit(optimizer.update)(nothing, optimizer.init(equal))
    assert_bitwise_same(updates, jax.tree.map(jnp.asarray, nothing))
    assert int(state.notfinite_count) == 0


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_is_zero_and_changes_only_what_the_guard_counts(bad, dynamic):
    optimizer = guarded(dynamic, max_norm=1.0)
    update = jax.jit(optimizer.update)
    _, state = update(GRADIENTS, optimizer.init(GRADIENTS))
    before = state.inner_state
    poisoned = {"a": GRADIENTS["a"].copy(), "b": GRADIENTS["b"]}
    poisoned["a"][1, 0] = bad
    for skipped in (1, 2, 3):
        updates, state = update(poisoned, state)
        assert all(not np.any(u) for u in jax.tree.leaves(updates))
        assert_bitwise_same(state.inner_state, before)
        assert int(optax.tree.get(state, "notfinite_count")) == skipped
    _, state = update(GRADIENTS, state)
    assert (int(state.notfinite_count), int(state.total_notfinite)) == (0, 3)
    assert not np.array_equal(
        optax.tree.get(state, "trace")["a"], optax.tree.get(before, "trace")["a"]
    )
    _, state = update(poisoned, state)
    assert (int(state.notfinite_count), int(state.total_notfinite)) == (1, 4)


def test_without_dynamic_scaling_the_scale_is_one_forever():
    optimizer = guarded()
    state = optimizer.init(GRADIENTS)
    for gradients in (GRADIENTS, POISONED, GRADIENTS):
        assert (scale_of(state), int(state.good_updates)) == (1.0, 0)
        _, state = optimizer.update(gradients, state)
    assert state.loss_scale.dtype == jnp.float32
    assert (scale_of(state), int(state.good_updates)) == (1.0, 0)


def test_gradients_of_a_scaled_loss_give_the_same_updates_bit_for_bit_and_the_true_norm():
    plain, dynamic = guarded(False, max_norm=2.0), guarded(True, max_norm=2.0)
    expected, reference = jax.jit(plain.update)(GRADIENTS, plain.init(GRADIENTS))
    state = dynamic.init(GRADIENTS)
    assert scale_of(state) == 2**15
    updates, state = jax.jit(dynamic.update)(scaled(GRADIENTS, 2**15), state)
    assert_bitwise_same(updates, expected)
    assert_bitwise_same(state.inner_state, reference.inner_state)
    assert float(optax.tree.get(state, "grad_norm")) == pytest.approx(NORM, rel=1e-6)
    assert (scale_of(state), int(state.good_updates)) == (2**15, 1)


def test_every_skipped_step_halves_the_scale_down_to_one():
    optimizer = guarded(dynamic=True)
    update, state, scales = jax.jit(optimizer.update), optimizer.init(GRADIENTS), []
    _, state = update(GRADIENTS, state)
    for _ in range(17):
        _, state = update(POISONED, state)
        assert int(state.good_updates) == 0
        scales.append(scale_of(state))
    assert scales == [*(2.0**i for i in range(14, -1, -1)), 1.0, 1.0]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2**15, 2**16), (2**24, 2**24)])
def test_two_thousand_good_steps_in_a_row_double_the_scale_up_to_its_limit(before, after):
    optimizer = guarded(dynamic=True)
    update = jax.jit(optimizer.update)
    fresh = optimizer.init(GRADIENTS)._replace(loss_scale=jnp.float32(before))
    state = fresh._replace(good_updates=jnp.int32(1998))
    _, state = update(GRADIENTS, state)
    assert (scale_of(state), int(state.good_updates)) == (before, 1999)
    _, doubled = update(GRADIENTS, state)
    assert (scale_of(doubled), int(doubled.good_updates)) == (after, 0)
    _, interrupted = update(POISONED, state)
    _, interrupted = update(GRADIENTS, interrupted)
    assert scale_of(interrupted) == max(before / 2, 1)
    assert int(interrupted.good_updates) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_averaged_gradients_stay_replicated_through_the_guard_of_a_mesh(dynamic):
    """Both branches must have the type the mesh's checks ask for: the same on all devices."""
    optimizer, mesh = guarded(dynamic, max_norm=1.0), make_mesh(8)
    state = optimizer.init(GRADIENTS)

    def update(gradients, state):
        return optimizer.update(lax.pmean(gradients, DATA), state)

    sharded = jax.jit(jax.shard_map(update, mesh=mesh, in_specs=(P(DATA), P()), out_specs=P()))
    eight = jax.tree.map(lambda g: np.concatenate([g] * 8), scaled(GRADIENTS, scale_of(state)))
    updates, after = sharded(eight, state)
    expected, _ = optimizer.update(scaled(GRADIENTS, scale_of(state)), state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
    eight["a"][13, 1] = np.inf
    updates, skipped = sharded(eight, after)
    assert all(not np.any(u) for u in jax.tree.leaves(updates))
    assert int(skipped.notfinite_count) == 1


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_run_that_changes_its_type_takes_the_scale_of_the_new_one(dynamic):
    params = {"w": jnp.ones(3)}
    before = skip_unless_finite(optax.identity(), not dynamic).init(params)
    after = with_loss_scale(before, dynamic)
    assert float(after.loss_scale) == (2.0**15 if dynamic else 1.0)
    assert int(after.good_updates) == 0
    assert with_loss_scale(after, dynamic) is after

"""The optimizer does what its docstrings say, number by number.

Proven against literal lists, hand-computed schedules and an AdamW written in NumPy at double
precision: which leaves decay, what rate each update has, what one update does, and that gradients
which are not finite leave no trace but a count.
"""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from gptjax.config import Config, ModelConfig, OptimConfig
from gptjax.errors import ConfigError
from gptjax.model.gpt import parameter_shapes
from gptjax.training.optimizer import (
    decay_mask,
    decay_table,
    learning_rate_schedule,
    make_optimizer,
)
from gptjax.tree import named_leaves
from gptjax.validation import validate

FULL_GPT = ModelConfig(
    n_layer=3, n_head=2, n_embd=8, n_ctx=4, n_vocab=7, tied_head=False, qkv_bias=True, bias=True
)
IS_DECAYED = {
    "h/attn/c_attn/bias": False,
    "h/attn/c_attn/kernel": True,
    "h/attn/c_proj/bias": False,
    "h/attn/c_proj/kernel": True,
    "h/ln_1/bias": False,
    "h/ln_1/scale": False,
    "h/ln_2/bias": False,
    "h/ln_2/scale": False,
    "h/mlp/c_fc/bias": False,
    "h/mlp/c_fc/kernel": True,
    "h/mlp/c_proj/bias": False,
    "h/mlp/c_proj/kernel": True,
    "lm_head": True,
    "ln_f/bias": False,
    "ln_f/scale": False,
    "wpe/embedding": True,
    "wte/embedding": True,
}
ADAMW = OptimConfig(
    peak_lr=0.03,
    final_lr=0.004,
    warmup_steps=2,
    decay_steps=5,
    weight_decay=0.3,
    beta1=0.8,
    beta2=0.9,
    eps=1e-3,
    clip_norm=1.5,
)


def test_every_leaf_of_a_full_gpt_is_decayed_or_not_as_listed():
    table = decay_table(parameter_shapes(FULL_GPT))
    assert {name: decayed for name, _, decayed in table} == IS_DECAYED
    assert len(table) == len(IS_DECAYED)


def test_stacked_biases_and_norms_have_two_dimensions_and_are_still_not_decayed():
    stacked = [(len(s), d) for name, s, d in decay_table(parameter_shapes(FULL_GPT))
               if name.startswith("h/") and name.endswith(("bias", "scale"))]  # fmt: skip
    assert stacked == [(2, False)] * 8


@pytest.mark.parametrize(
    "switches",
    [{"tied_head": True}, {"qkv_bias": False}, {"bias": False}, {"final_norm": False}],
)
def test_the_mask_covers_every_variant_of_the_model(switches):
    table = decay_table(parameter_shapes(dataclasses.replace(FULL_GPT, **switches)))
    assert all(decayed == IS_DECAYED[name] for name, _, decayed in table)
    assert 0 < len(table) < len(IS_DECAYED)


@pytest.mark.parametrize("name", ["lora_a", "kernels", "scale_kernel", "bias"])
def test_an_unknown_leaf_is_refused_by_name(name):
    params = {"h": {"ln_1": {"scale": np.ones(2)}}, name: np.ones((2, 2))}
    with pytest.raises(ValueError, match=f"parameter {name} is matched by no pattern"):
        decay_mask(params)


def rates(cfg: OptimConfig, max_steps: int, updates: int) -> list[float]:
    schedule = learning_rate_schedule(cfg, max_steps)
    return [float(schedule(i)) for i in range(updates)]


def test_the_schedule_by_hand():
    cfg = OptimConfig(peak_lr=0.8, final_lr=0.2, warmup_steps=3)
    cosine = [0.2 + 0.6 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    expected = [0.2, 0.4, 0.6, *cosine, 0.2, 0.2]
    np.testing.assert_allclose(rates(cfg, max_steps=7, updates=10), expected, rtol=1e-6)


def test_the_first_update_already_learns_and_the_last_of_the_warm_up_is_below_the_peak():
    got = rates(OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=99), 1000, 101)
    np.testing.assert_allclose(got[:100], np.arange(1, 101) / 100, rtol=1e-5)
    assert got[100] < got[99] == 1.0


def test_without_warm_up_the_first_update_has_the_peak():
    cfg = OptimConfig(peak_lr=0.5, final_lr=0.1, warmup_steps=0)
    np.testing.assert_allclose(rates(cfg, 2, 4), [0.5, 0.3, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(("decay_steps", "max_steps"), [(None, 6), (6, 100), (6, 3)])
def test_decay_steps_replaces_max_steps_as_the_end_of_the_cosine(decay_steps, max_steps):
    cfg = OptimConfig(peak_lr=0.5, final_lr=0.05, warmup_steps=2, decay_steps=decay_steps)
    got = rates(cfg, max_steps, 200)
    np.testing.assert_allclose(got[2], 0.5, rtol=1e-6)
    np.testing.assert_allclose(got[6:], 0.05, rtol=1e-6)
    assert got[5] > 0.051


def test_a_run_shorter_than_its_warm_up_never_leaves_it():
    cfg = OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=9)
    for max_steps in (1, 5, 9):
        np.testing.assert_allclose(rates(cfg, max_steps, 9), np.arange(1, 10) / 10, rtol=1e-5)


@pytest.mark.parametrize(
    ("warmup_steps", "is_valid"), [(0, True), (9, True), (10, True), (11, False)]
)
def test_a_warm_up_longer_than_decay_steps_is_refused_and_any_other_reaches_the_peak(
    warmup_steps, is_valid
):
    optim = OptimConfig(peak_lr=1.0, final_lr=0.1, warmup_steps=warmup_steps, decay_steps=10)
    if not is_valid:
        with pytest.raises(ConfigError, match=r"optim.warmup_steps 11 is longer"):
            validate(Config(optim=optim))
        return
    validate(Config(optim=optim))
    got = rates(optim, 1000, 20)
    assert max(got) == got[warmup_steps] == pytest.approx(1.0)
    np.testing.assert_allclose(got[11:], 0.1, rtol=1e-6)


def some_params(seed: int = 0) -> dict:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {
        "wte": {"embedding": (5, 4)},
        "h": {"mlp": {"kernel": (2, 4, 3), "bias": (2, 3)}},
        "ln_f": {"scale": (4,), "bias": (4,)},
        "lm_head": (5, 4),
    }
    return jax.tree.map(
        lambda shape: np.float32(draw(shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def some_gradients(updates: int) -> list[dict]:
    """Gradients whose norms lie on both sides of the clipping norm."""
    scales = [0.01, 3.0, 0.1, 0.5, 0.02, 1.0, 0.05]
    return [
        jax.tree.map(lambda g, s=s: g * np.float32(s), some_params(seed=i + 1))
        for i, s in enumerate(scales[:updates])
    ]


def numpy_norm(tree: dict) -> float:
    return math.sqrt(sum(np.square(np.float64(x)).sum() for x in jax.tree.leaves(tree)))


def numpy_adamw(cfg: OptimConfig, params: dict, gradients: list[dict], rates: list[float]) -> dict:
    """Clip, Adam and decoupled decay in float64, leaf by leaf."""
    p = [np.float64(x) for x in jax.tree.leaves(params)]
    names = list(named_leaves(params))
    decayed = [name in ("wte/embedding", "h/mlp/kernel", "lm_head") for name in names]
    m, v = [0.0] * len(p), [0.0] * len(p)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = numpy_norm(gradient)
        clip = 1.0 if cfg.clip_norm is None else min(1.0, cfg.clip_norm / norm)
        for i, leaf in enumerate(jax.tree.leaves(gradient)):
            g = np.float64(leaf) * clip
            m[i] = cfg.beta1 * m[i] + (1 - cfg.beta1) * g
            v[i] = cfg.beta2 * v[i] + (1 - cfg.beta2) * g * g
            direction = m[i] / (1 - cfg.beta1**t) / (np.sqrt(v[i] / (1 - cfg.beta2**t)) + cfg.eps)
            p[i] = p[i] - rate * (direction + cfg.weight_decay * decayed[i] * p[i])
    return jax.tree.unflatten(jax.tree.structure(params), p)


def apply(optimizer, params: dict, gradients: list[dict]) -> tuple[dict, optax.OptState]:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("clip_norm", [1.5, None])
def test_updates_are_those_of_an_independent_adamw(clip_norm):
    cfg = dataclasses.replace(ADAMW, clip_norm=clip_norm)
    params, gradients = some_params(), some_gradients(7)
    cosine = [0.004 + 0.026 * (1 + math.cos(math.pi * i / 3)) / 2 for i in range(4)]
    by_hand = [0.01, 0.02, *cosine, 0.004]
    expected = numpy_adamw(cfg, params, gradients, by_hand)
    got, _ = apply(make_optimizer(cfg, max_steps=1000), params, gradients)
    for name, leaf in named_leaves(got).items():
        np.testing.assert_allclose(leaf, named_leaves(expected)[name], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1e-3, 1.5, None])
def test_the_logged_norm_is_the_global_one_before_clipping(clip_norm):
    cfg = dataclasses.replace(ADAMW, clip_norm=clip_norm)
    gradients = some_gradients(2)
    _, state = apply(make_optimizer(cfg, 10), some_params(), gradients)
    logged = float(optax.tree.get(state, "grad_norm"))
    assert numpy_norm(gradients[1]) > 1.5
    assert logged == pytest.approx(numpy_norm(gradients[1]), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_a_count(bad):
    optimizer, params, gradients = make_optimizer(ADAMW, 10), some_params(), some_gradients(4)
    poisoned = jax.tree.map(np.copy, gradients[0])
    poisoned["h"]["mlp"]["bias"][1, 2] = bad
    before, state = apply(optimizer, params, gradients[:3])
    for skipped in (1, 2):
        updates, after = optimizer.update(poisoned, state, before)
        assert all(np.array_equal(u, np.zeros_like(u)) for u in jax.tree.leaves(updates))
        jax.tree.map(np.testing.assert_array_equal, after.inner_state, state.inner_state)
        assert int(optax.tree.get(after, "notfinite_count")) == skipped
        state = after

    updates, state = jax.jit(optimizer.update)(gradients[3], state, before)
    unharmed, undisturbed = apply(optimizer, params, gradients)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(before, updates), unharmed)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, undisturbed.inner_state)
    assert int(optax.tree.get(state, "notfinite_count")) == 0
    assert schedule_count(state) == 4


def schedule_count(state: optax.OptState) -> int:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))
    (found,) = [int(x.count) for x in leaves if isinstance(x, optax.ScaleByScheduleState)]
    return found

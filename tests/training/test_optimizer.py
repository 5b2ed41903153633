"""The optimizer does what its docstrings say, number by number.

Proven against literal lists and an AdamW in NumPy at double precision: which leaves decay, what
one step does, that gradients which are not finite leave no trace but a count, what is averaged,
and that every optimizer can be donated, run on a mesh and restored. Schedules, rules and the guard
have their own files.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.base.tree import abstract_tree, named_leaves
from gptjax.cluster.mesh import DATA, make_mesh, replicated
from gptjax.config import ModelConfig, OptimConfig
from gptjax.model.gpt import parameter_shapes
from gptjax.runs.checkpoint import Checkpointer
from gptjax.training.optimizer import (
    accumulation,
    averaged_parameters,
    decay_mask,
    decay_table,
    make_optimizer,
)
from gptjax.training.state import TrainState, items_of, saved_items, state_of

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


def test_weight_decay_goes_by_the_table_of_leaves():
    shapes = parameter_shapes(ModelConfig(n_layer=3, n_head=2, n_embd=8, n_ctx=4, n_vocab=7))
    table = decay_table(shapes)
    assert [(name, shape) for name, shape, _ in table] == [
        (name, leaf.shape) for name, leaf in named_leaves(shapes).items()
    ]
    mask = named_leaves(decay_mask(shapes))
    assert {name: decayed for name, _, decayed in table} == mask
    assert mask["h/attn/c_attn/kernel"] is True
    assert mask["h/attn/c_attn/bias"] is False  # although stacked, of two dimensions


def some_params(seed: int = 0) -> dict:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {
        "wte": {"embedding": (5, 4)},
        "h": {"mlp": {"c_fc": {"kernel": (2, 4, 3), "bias": (2, 3)}}},
        "ln_f": {"scale": (4,), "bias": (4,)},
        "lm_head": (5, 4),
    }
    return jax.tree.map(
        lambda shape: np.float32(draw(shape)), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def some_gradients(steps: int) -> list[dict]:
    """Gradients whose norms lie on both sides of the clipping norm."""
    scales = [0.01, 3.0, 0.1, 0.5, 0.02, 1.0, 0.05]
    return [
        jax.tree.map(lambda g, s=s: g * np.float32(s), some_params(seed=i + 1))
        for i, s in enumerate(scales[:steps])
    ]


def numpy_norm(tree: dict) -> float:
    return math.sqrt(sum(np.square(np.float64(x)).sum() for x in jax.tree.leaves(tree)))


def numpy_adamw(cfg: OptimConfig, params: dict, gradients: list[dict], rates: list[float]) -> dict:
    """Clip, Adam and decoupled decay in float64, leaf by leaf."""
    p = [np.float64(x) for x in jax.tree.leaves(params)]
    names = list(named_leaves(params))
    decayed = [name in ("wte/embedding", "h/mlp/c_fc/kernel", "lm_head") for name in names]
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
    poisoned["h"]["mlp"]["c_fc"]["bias"][1, 2] = bad
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


def test_no_average_is_kept_unless_asked_for():
    state = make_optimizer(ADAMW, 10).init(some_params())
    assert averaged_parameters(state) is None


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_is_that_of_the_parameters_after_each_accepted_step(decay):
    cfg = dataclasses.replace(ADAMW, ema_decay=decay)
    optimizer, params = make_optimizer(cfg, 10), some_params()
    poisoned = jax.tree.map(lambda g: g * np.float32(np.nan), some_gradients(1)[0])
    gradients = some_gradients(7)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = {name: np.float64(leaf) for name, leaf in named_leaves(params).items()}
    for t, gradient in enumerate(gradients):
        if t == 4:  # skipped: the average must not move, nor its warm-up
            updates, state = update(poisoned, state, params)
            params = optax.apply_updates(params, updates)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        kept = min(decay, (1 + t) / (10 + t))
        for name, leaf in named_leaves(params).items():
            expected[name] = kept * expected[name] + (1 - kept) * np.float64(leaf)
    average = named_leaves(averaged_parameters(state))
    assert list(average) == list(expected)
    for name, leaf in average.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, atol=1e-6)
    unaveraged, _ = apply(make_optimizer(ADAMW, 10), some_params(), gradients)
    jax.tree.map(np.testing.assert_array_equal, params, unaveraged)


def test_the_average_starts_as_the_parameters_and_stays_float32_with_moments_in_bfloat16():
    cfg = dataclasses.replace(ADAMW, ema_decay=0.9, moments_dtype="bfloat16")
    params = some_params()
    average = averaged_parameters(make_optimizer(cfg, 10).init(params))
    jax.tree.map(lambda a, p: np.testing.assert_array_equal(a, p, strict=True), average, params)
    _, state = apply(make_optimizer(cfg, 10), params, some_gradients(2))
    assert {x.dtype for x in jax.tree.leaves(averaged_parameters(state))} == {np.dtype("float32")}
    assert optax.tree.get(state, "mu")["lm_head"].dtype == "bfloat16"
    assert optax.tree.get(state, "grad_norm").dtype == np.float32


def test_the_order_is_clip_rule_decay_rate():
    """Lion's sign hides the clipping, so what is left is the rate times sign and decay."""
    cfg = dataclasses.replace(ADAMW, name="lion", clip_norm=1e-6)
    params, (gradient,) = some_params(), some_gradients(1)
    got, _ = apply(make_optimizer(cfg, 1000), params, [gradient])
    for name, leaf in named_leaves(params).items():
        decay = 0.3 * leaf if name.endswith(("kernel", "embedding", "head")) else 0.0
        expected = leaf - 0.01 * (np.sign(named_leaves(gradient)[name]) + decay)
        np.testing.assert_allclose(named_leaves(got)[name], expected, rtol=1e-5, atol=1e-6)


EVERYTHING = [
    OptimConfig(name=name, peak_lr=0.2, final_lr=0.0, warmup_steps=1, weight_decay=0.0,
                schedule="linear", moments_dtype=moments, ema_decay=ema)
    for name in ("adamw", "lion", "adafactor", "muon")
    for moments, ema in (("float32", None), ("bfloat16", 0.9))
]  # fmt: skip
every_optimizer = pytest.mark.parametrize(
    "cfg", EVERYTHING, ids=lambda cfg: f"{cfg.name}-{cfg.moments_dtype}"
)


@every_optimizer
def test_a_quadratic_is_brought_down_with_everything_donated(cfg):
    """The state keeps structure, shapes and types, or donation and recompilation would show it."""
    optimizer, target = make_optimizer(cfg, 150), some_params(seed=5)

    def loss(params: dict) -> jax.Array:
        return jnp.square(optax.tree.norm(optax.tree.sub(params, target)))

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, some_params())
    state = optimizer.init(params)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    start = float(loss(params))
    for _ in range(150):
        old, (params, state) = (params, state), update(params, state)
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == before
    assert update._cache_size() == 1
    assert float(loss(params)) < 0.02 * start
    if cfg.ema_decay is not None:
        assert float(loss(averaged_parameters(state))) < 0.02 * start


@pytest.mark.parametrize("micro_steps", [2, 5])
def test_gradients_of_micro_steps_are_averaged(micro_steps):
    average, gradients = accumulation(micro_steps), some_gradients(micro_steps)
    state = average.init(some_params())
    for gradient in gradients:
        emitted, state = jax.jit(average.update)(gradient, state)
        assert all(not np.any(u) for u in jax.tree.leaves(emitted))
    found = named_leaves(state.acc_grads)
    for name, leaves in named_leaves(jax.tree.map(lambda *g: np.stack(g), *gradients)).items():
        expected = np.mean(leaves, axis=0, dtype=np.float64)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every_optimizer
def test_a_rule_does_the_same_to_parameters_that_are_divided(cfg):
    """Muon's and Adafactor's too, which look at whole matrices."""
    optimizer, params, mesh = make_optimizer(cfg, 10), some_params(), make_mesh(2)
    (gradient,), state = some_gradients(1), optimizer.init(params)

    def place(tree):
        def divide(x):  # along the first dimension of even length
            first = next(i for i, n in enumerate((*x.shape, 2)) if n % 2 == 0)
            spec = P(*[None] * first, DATA) if first < x.ndim else P()
            return jax.device_put(x, NamedSharding(mesh, spec))

        return jax.tree.map(divide, tree)

    assert not any(x.sharding.is_fully_replicated for x in jax.tree.leaves(place(params)))
    expected, after = jax.jit(optimizer.update)(gradient, state, params)
    updates, same = jax.jit(optimizer.update)(place(gradient), state, place(params))
    for name, leaf in named_leaves(updates).items():
        np.testing.assert_allclose(leaf, named_leaves(expected)[name], rtol=1e-4, atol=1e-7)
    assert schedule_count(same) == schedule_count(after) == 1


@every_optimizer
def test_every_state_comes_back_from_a_checkpoint(cfg, tmp_path):
    optimizer = make_optimizer(cfg, 10, dynamic_loss_scale=True)
    params, opt_state = apply(optimizer, some_params(), some_gradients(2))
    state = jax.device_put(TrainState(jnp.int32(2), params, opt_state), replicated(make_mesh(1)))
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(2, saved_items(state), {}, {})
    checkpointer.close()
    abstract = abstract_tree(state, replicated(make_mesh(2)))
    found = Checkpointer(tmp_path / "checkpoints").restore(items_of(abstract), print)
    assert found is not None
    restored = state_of(found.step, found.items, abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), restored, state)


def test_a_scaled_loss_gives_the_updates_of_the_plain_one():
    gradients = some_gradients(3)
    scaled = [jax.tree.map(lambda g: g * np.float32(2**15), g) for g in gradients]
    plain, _ = apply(make_optimizer(ADAMW, 10), some_params(), gradients)
    got, state = apply(make_optimizer(ADAMW, 10, dynamic_loss_scale=True), some_params(), scaled)
    jax.tree.map(np.testing.assert_array_equal, got, plain)
    assert float(optax.tree.get(state, "loss_scale")) == 2**15
    assert float(optax.tree.get(state, "grad_norm")) == pytest.approx(numpy_norm(gradients[2]))

"""Each rule's direction is that of its paper, computed anew in NumPy at double precision.

Muon's is proven through singular values too, which need no formula, and storage in bfloat16
through what it must not change: the first step, which has no stored moments yet.
"""

import dataclasses
import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.base.tree import named_leaves
from gptjax.config import OptimConfig
from gptjax.training.update_rules import UPDATE_RULES, adamw, muon

CFG = OptimConfig(beta1=0.8, beta2=0.95, eps=1e-6)
BFLOAT16 = dataclasses.replace(CFG, moments_dtype="bfloat16")
SHAPES = {
    "wte": {"embedding": (140, 128)},
    "h": {
        "attn": {
            "c_attn": {"kernel": (3, 128, 200), "bias": (3, 200)},
            "c_proj": {"kernel": (3, 6, 10)},
        },
        "mlp": {"c_fc": {"kernel": (3, 160, 128)}},
        "ln_1": {"scale": (3, 128)},
    },
    "lm_head": (7, 128),
}
FACTORED = {"wte/embedding", "h/attn/c_attn/kernel", "h/mlp/c_fc/kernel"}
MATRICES = ["h/attn/c_attn/kernel", "h/mlp/c_fc/kernel", "h/attn/c_proj/kernel"]


def draw(seed: int, scale: float = 1.0) -> dict:
    normal = np.random.default_rng(seed).standard_normal
    return jax.tree.map(
        lambda shape: np.float32(scale * normal(shape)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


GRADIENTS = [draw(1, 0.01), draw(2, 2.0), draw(3, 0.1)]


def directions(rule: optax.GradientTransformation, gradients: list[dict]) -> tuple[list, list]:
    """Updates and states, one for each of the gradients."""
    params = draw(0)
    updates, states = [], [rule.init(params)]
    for gradient in gradients:
        update, state = jax.jit(rule.update)(gradient, states[-1], params)
        updates.append(named_leaves(update))
        states.append(state)
    return updates, states[1:]


@cache
def of_rule(name: str, cfg: OptimConfig = CFG) -> tuple[list, list]:
    """Updates and states of a row of the table, for all of GRADIENTS."""
    return directions(UPDATE_RULES[name](cfg), GRADIENTS)


def assert_close(got: dict, expected: dict, relative: float) -> None:
    for name, leaf in expected.items():
        error = np.abs(np.float64(got[name]) - leaf).max()
        assert error <= relative * np.abs(leaf).max(), name


def assert_bitwise_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, expected)


def in_float64(gradients: list[dict]) -> dict[str, list[np.ndarray]]:
    return {
        name: [np.float64(named_leaves(g)[name]) for g in gradients]
        for name in named_leaves(gradients[0])
    }


def test_adamw_is_adam_with_corrected_bias():
    updates, _ = of_rule("adamw")
    for name, leaves in in_float64(GRADIENTS).items():
        m = v = np.zeros_like(leaves[0])
        for t, g in enumerate(leaves, start=1):
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            expected = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
            assert_close(updates[t - 1], {name: expected}, 1e-5)


@pytest.mark.slow
def test_lion_is_the_sign_of_an_interpolation_that_its_momentum_does_not_keep():
    updates, _ = of_rule("lion")
    for name, leaves in in_float64(GRADIENTS).items():
        m = np.zeros_like(leaves[0])
        for t, g in enumerate(leaves):
            mixed = 0.8 * m + 0.2 * g
            clear = np.abs(mixed) > 1e-6  # where rounding cannot decide the sign
            np.testing.assert_array_equal(updates[t][name][clear], np.sign(mixed)[clear])
            m = 0.95 * m + 0.05 * g


def numpy_adafactor(leaves: list[np.ndarray], factored: bool, stacked: bool) -> list[np.ndarray]:
    """One matrix at a time, as in algorithm 4 without relative steps."""
    if stacked:
        layers = [numpy_adafactor([g[i] for g in leaves], factored, False) for i in range(3)]
        return [np.stack(updates) for updates in zip(*layers, strict=True)]
    v = rows = columns = 0.0
    updates = []
    for t, g in enumerate(leaves, start=1):
        decay, square = 1 - t**-0.8, g * g + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * square.mean(1, keepdims=True)
            columns = decay * columns + (1 - decay) * square.mean(0, keepdims=True)
            v = rows @ columns / rows.mean()
        else:
            v = decay * v + (1 - decay) * square
        update = g / np.sqrt(v)
        updates.append(update / max(1.0, math.sqrt(np.square(update).mean())))
    return updates


def test_adafactor_factors_and_clips_every_layer_alone():
    updates, _ = of_rule("adafactor")
    for name, leaves in in_float64(GRADIENTS).items():
        expected = numpy_adafactor(leaves, name in FACTORED, stacked=name.startswith("h/"))
        for t in range(3):
            assert_close(updates[t], {name: expected[t]}, 1e-5)


def test_adafactor_keeps_rows_and_columns_of_matrices_and_all_of_the_rest():
    _, states = of_rule("adafactor")
    parts = {
        part: named_leaves(optax.tree.get(states[0], part)) for part in ("v_row", "v_col", "v")
    }
    shapes = {part: {n: leaf.shape for n, leaf in tree.items()} for part, tree in parts.items()}
    for name, leaf in named_leaves(draw(0)).items():
        if name in FACTORED:
            kept = {shapes["v_row"][name], shapes["v_col"][name]}
            assert kept == {leaf.shape[:-1], (*leaf.shape[:-2], leaf.shape[-1])}
            assert shapes["v"][name] == (1,)
        else:
            assert shapes["v"][name] == leaf.shape
            assert shapes["v_row"][name] == shapes["v_col"][name] == (1,)


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five quintic steps on the smaller side, with the coefficients of Jordan et al. 2024."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("momentum", [0.95, 0.8])
def test_muon_orthogonalises_the_nesterov_momentum_of_each_layer(name, momentum):
    cfg = dataclasses.replace(CFG, muon_momentum=momentum)
    updates, _ = directions(muon(cfg), GRADIENTS)
    leaves = in_float64(GRADIENTS)[name]
    scale = 0.2 * math.sqrt(max(leaves[0].shape[1:]))
    for layer in range(3):
        m = np.zeros(leaves[0].shape[1:])
        for t, g in enumerate((leaf[layer] for leaf in leaves), start=1):
            m = momentum * m + (1 - momentum) * g
            ahead = momentum * m / (1 - momentum ** (t + 1))
            ahead += (1 - momentum) * g / (1 - momentum**t)
            expected = scale * newton_schulz(ahead)
            assert_close({name: updates[t - 1][name][layer]}, {name: expected}, 1e-4)


@pytest.mark.parametrize("name", MATRICES)
def test_muons_matrices_are_nearly_orthogonal_and_of_the_rms_of_adamw(name):
    updates, _ = of_rule("muon")
    for update in updates:
        for matrix in np.float64(update[name]):
            singular = np.linalg.svd(matrix, compute_uv=False) / (
                0.2 * math.sqrt(max(matrix.shape))
            )
            assert 0.3 < singular.min() <= singular.max() < 1.3
            assert 0.7 < np.median(singular) < 1.2
            assert math.sqrt(np.square(matrix).mean()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_no_layer_of_a_stack_feels_another(rule):
    louder = jax.tree.map(np.copy, GRADIENTS)
    for gradient in louder:
        for leaf in jax.tree.leaves(gradient["h"]):
            leaf[1] *= 100 * np.abs(leaf[2])
    quiet, loud = of_rule(rule)[0], directions(UPDATE_RULES[rule](CFG), louder)[0]
    for before, after in zip(quiet, loud, strict=True):
        for name in (name for name in before if name.startswith("h/")):
            for layer in (0, 2):
                assert_close({name: after[name][layer]}, {name: before[name][layer]}, 1e-6)
        assert (
            np.abs(before["h/attn/c_attn/kernel"][1] - after["h/attn/c_attn/kernel"][1]).max()
            > 0.01
        )


def test_muon_does_not_mind_how_deep_the_stack_is():
    kernel = np.float32(np.random.default_rng(0).standard_normal((12, 4, 3)))
    deep = {"h": {"mlp": {"c_fc": {"kernel": kernel}}}}
    shallow = jax.tree.map(lambda g: g[:2], deep)
    rule = muon(CFG)
    got, alone = (
        rule.update(g, rule.init(g), g)[0]["h"]["mlp"]["c_fc"]["kernel"] for g in (deep, shallow)
    )
    np.testing.assert_allclose(got[:2], alone, rtol=1e-4, atol=1e-6)


def test_muon_leaves_all_that_is_no_matrix_of_a_block_to_adamw():
    mixed, plain = of_rule("muon")[0], of_rule("adamw")[0]
    for t in range(3):
        same = {name for name in plain[t] if np.array_equal(mixed[t][name], plain[t][name])}
        assert same == set(plain[t]) - set(MATRICES)


def test_muon_refuses_a_parameter_it_does_not_know():
    with pytest.raises(ValueError, match="parameter lora is not in the table of leaves"):
        muon(CFG).init({"lora": np.ones((2, 2))})


@pytest.mark.parametrize(
    ("name", "moments"),
    [("adamw", ["mu", "nu"]), ("lion", ["mu"]), ("muon", ["mu", "mu", "nu"])],
)
def test_moments_are_stored_in_bfloat16_and_nothing_else_is(name, moments):
    exact, exact_states = of_rule(name)
    rounded, states = of_rule(name, BFLOAT16)
    narrow = [m for m in ("mu", "nu") for _, x in optax.tree.get_all_with_path(states[0], m)
              if all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(x))]  # fmt: skip
    assert narrow == moments
    others = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(states[0])
        if not any(getattr(part, "name", "") in ("mu", "nu") for part in path)
    ]  # fmt: skip
    assert {leaf.dtype for leaf in others} <= {jnp.dtype("int32"), jnp.dtype("float32")}

    # computed in float32: what is stored is rounded, what is done with it at first is not
    assert_close(rounded[0], exact[0], 1e-5)
    stored = jax.tree.map(lambda x, like: x.astype(like.dtype), exact_states[0], states[0])
    assert_bitwise_same(states[0], stored)
    for t in (1, 2):
        for leaf, exact_leaf in zip(rounded[t].values(), exact[t].values(), strict=True):
            assert leaf.dtype == jnp.float32
            assert np.linalg.norm(leaf - exact_leaf) < 0.03 * np.linalg.norm(exact_leaf)
    assert not all(np.array_equal(rounded[2][name], exact[2][name]) for name in exact[2])


def test_moments_in_bfloat16_still_decay_at_0_99():
    rule = adamw(dataclasses.replace(BFLOAT16, beta1=0.99, beta2=0.99))
    _, states = directions(rule, [GRADIENTS[0], *[draw(0, 0.0)] * 3])
    for part in ("mu", "nu"):
        sizes = [
            np.abs(np.float32(optax.tree.get(state, part)["h"]["attn"]["c_attn"]["kernel"]))
            for state in states
        ]
        assert all((b < a).all() for a, b in itertools.pairwise(sizes))


def test_adafactors_statistics_stay_float32():
    exact, _ = of_rule("adafactor")
    rounded, states = of_rule("adafactor", BFLOAT16)
    assert jnp.bfloat16 not in {leaf.dtype for leaf in jax.tree.leaves(states)}
    assert_bitwise_same(rounded, exact)

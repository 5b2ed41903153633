"""Samplers against plain NumPy, transformers and the distribution of a hundred thousand draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from gptjax.generation import samplers
from gptjax.generation.rows import find_largest, float_of, ordered_bits
from gptjax.generation.samplers import Sampling
from gptjax.model.gpt import PADDING_LOGIT

sample = jax.jit(samplers.sample)
keep_top_k, keep_top_p, keep_min_p = map(
    jax.jit, (samplers.keep_top_k, samplers.keep_top_p, samplers.keep_min_p)
)
divide_by_temperature = jax.jit(samplers.divide_by_temperature)
penalise_repetition = jax.jit(samplers.penalise_repetition)
log_normaliser = jax.jit(samplers.log_normaliser)
most_likely = jax.jit(samplers.most_likely)
INF = float("inf")
DRAWS = 100_000
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def rows(kind: str, width: int) -> np.ndarray:
    """Six rows of logits, float32."""
    random = np.random.default_rng(width)
    logits_BV = random.normal(0, 3, (6, width)).astype(np.float32)
    if kind == "ties":
        return np.round(logits_BV)
    if kind == "removed":
        removed_BV = random.random(logits_BV.shape) < 0.8
        removed_BV[:, width // 2] = False
        return np.where(removed_BV, np.float32(-INF), logits_BV)
    if kind == "extreme":
        scale = random.choice([1e-30, 1e-3, 1, 1e4, 1e30], logits_BV.shape)
        return (logits_BV * scale).astype(np.float32)
    return logits_BV


KINDS = [(kind, width) for kind in ("plain", "ties", "removed", "extreme") for width in (5, 777)]
every_kind = pytest.mark.parametrize(
    "logits_BV", [rows(*kind) for kind in KINDS], ids=map(str, KINDS)
)


def probabilities(logits_V: np.ndarray) -> np.ndarray:
    """The softmax in float64."""
    weights_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return weights_V / weights_V.sum()


def numpy_top_k(logits_V: np.ndarray, k: int) -> np.ndarray:
    """Keep what is at least the k-th of the sorted logits."""
    if k == 0 or k >= len(logits_V):
        return logits_V
    return np.where(logits_V >= np.sort(logits_V)[-k], logits_V, -INF)


def numpy_top_p(logits_V: np.ndarray, p: float) -> np.ndarray:
    """Keep what is at least as likely as the token with which the sorted sum reaches p."""
    if p == 1:
        return logits_V
    ordered = np.sort(probabilities(logits_V))[::-1]
    last = min(np.searchsorted(np.cumsum(ordered), p), len(ordered) - 1)
    return np.where(probabilities(logits_V) >= ordered[last], logits_V, -INF)


def numpy_min_p(logits_V: np.ndarray, p: float) -> np.ndarray:
    """Keep what is at least p times as likely as the most likely token."""
    weights_V = probabilities(logits_V)
    return np.where(weights_V >= p * weights_V.max(), logits_V, -INF)


def numpy_penalty(logits_V: np.ndarray, seen_V: np.ndarray, penalty: float) -> np.ndarray:
    """Divide what is positive, multiply what is negative."""
    penalised_V = np.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    return np.where(seen_V, penalised_V, logits_V)


def distribution(logits_V: np.ndarray, seen_V: np.ndarray, settings: dict) -> np.ndarray:
    """The probabilities with which `sample` must draw, after all of its steps."""
    s = OFF | settings
    logits_V = numpy_penalty(logits_V.astype(np.float64), seen_V, s["repetition_penalty"])
    logits_V = numpy_top_k(logits_V / s["temperature"], s["top_k"])
    return probabilities(numpy_min_p(numpy_top_p(logits_V, s["top_p"]), s["min_p"]))


def sampling_of(*rows_of_settings: dict) -> Sampling:
    """The arrays of a batch; what a row does not name is off."""
    table = [OFF | settings for settings in rows_of_settings]
    columns = {
        f"{name}_B": jnp.array([row[name] for row in table], type(value) if value else None)
        for name, value in OFF.items()
    }
    return Sampling(**columns)._replace(top_k_B=jnp.array([row["top_k"] for row in table]))


def keys_of(number: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), number)


@every_kind
@pytest.mark.parametrize("k", [0, 1, 2, 16, 500])
def test_top_k_keeps_what_sorting_keeps(logits_BV, k):
    kept_BV = keep_top_k(logits_BV, jnp.full(6, k))
    expected_BV = np.array([numpy_top_k(logits_V, k) for logits_V in logits_BV])
    np.testing.assert_array_equal(kept_BV, expected_BV.astype(np.float32))


@every_kind
@pytest.mark.parametrize("p", [1e-6, 0.123, 0.9, 0.997, 1.0])
def test_top_p_keeps_what_sorting_keeps(logits_BV, p):
    kept_BV = np.asarray(keep_top_p(logits_BV, jnp.full(6, p)))
    assert (np.isin(kept_BV, -INF) | (kept_BV == logits_BV)).all()
    # a sum in float32 may reach p a little sooner or later, but never by more than its rounding
    fewest_BV = np.array([numpy_top_p(logits_V, p - 1e-6 * (p > 1e-6)) for logits_V in logits_BV])
    most_BV = np.array([numpy_top_p(logits_V, min(p + 1e-6, 1.0)) for logits_V in logits_BV])
    drawable_BV = np.array([probabilities(logits_V) > 1e-38 for logits_V in logits_BV])
    assert ((kept_BV > -INF) >= (fewest_BV > -INF) & drawable_BV).all()
    assert ((kept_BV > -INF) <= (most_BV > -INF) | ~drawable_BV).all()


@every_kind
@pytest.mark.parametrize("p", [0.0, 1e-4, 0.25, 0.99])
def test_min_p_keeps_what_the_definition_keeps(logits_BV, p):
    kept_BV = keep_min_p(logits_BV, jnp.full(6, p))
    expected_BV = np.array([numpy_min_p(logits_V, p) for logits_V in logits_BV])
    np.testing.assert_array_equal(kept_BV, expected_BV.astype(np.float32))


@every_kind
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_penalty_lowers_seen_tokens_of_either_sign(logits_BV, penalty):
    seen_BV = np.random.default_rng(1).random(logits_BV.shape) < 0.5
    result_BV = penalise_repetition(logits_BV, seen_BV, jnp.full(6, penalty))
    expected_BV = numpy_penalty(logits_BV, seen_BV, penalty)
    np.testing.assert_allclose(result_BV, expected_BV, rtol=1e-6)


@every_kind
@pytest.mark.parametrize("temperature", [1e-45, 0.7, 3.0, 1e38])
def test_a_temperature_divides_and_never_overflows(logits_BV, temperature):
    result_BV = np.asarray(divide_by_temperature(logits_BV, jnp.full(6, temperature)))
    assert (result_BV.max(-1) == 0).all()
    assert not np.isnan(result_BV).any()
    if 1e-30 < temperature < 1e30 and np.abs(logits_BV[logits_BV > -INF]).max() < 100:
        expected_BV = (logits_BV - logits_BV.max(-1)[:, None]) / temperature
        np.testing.assert_allclose(result_BV, expected_BV, rtol=1e-5)


@every_kind
def test_the_most_likely_token_is_the_first_of_equal_ones(logits_BV):
    np.testing.assert_array_equal(most_likely(logits_BV), logits_BV.argmax(axis=1))


@every_kind
def test_the_normaliser_is_the_log_of_the_sum_of_exponentials(logits_BV):
    largest_B = logits_BV.max(-1).astype(np.float64)
    sums_B = np.exp(logits_BV - largest_B[:, None]).sum(-1)
    expected_B = largest_B + np.log(sums_B)
    np.testing.assert_allclose(log_normaliser(logits_BV), expected_B, rtol=2e-6, atol=2e-6)


def test_bits_are_ordered_as_their_floats():
    x = np.array([-INF, -1e30, -1.0, -1e-30, 0.0, 1e-30, 1.0, 1.0000001, 1e30, INF], np.float32)
    bits = ordered_bits(x)
    assert (jnp.diff(bits) > 0).all()
    np.testing.assert_array_equal(float_of(bits), x)
    assert find_largest(-jnp.ones((1, 16))).item() == -1


def test_both_zeros_are_one_boundary():
    logits_BV = jnp.array([[0.0, -0.0, -1.0, 1.0]])
    assert keep_top_k(logits_BV, jnp.array([2])).tolist() == [[0.0, 0.0, -INF, 1.0]]


def hugging_face(name, *settings):
    processors = pytest.importorskip("transformers.generation.logits_process")
    return getattr(processors, name)(*settings)


@pytest.mark.parametrize(
    ("ours", "value", "theirs"),
    [
        (keep_top_k, 7, "TopKLogitsWarper"),
        (keep_top_p, 0.8, "TopPLogitsWarper"),
        (keep_min_p, 0.05, "MinPLogitsWarper"),
        (divide_by_temperature, 0.7, "TemperatureLogitsWarper"),
    ],
)
def test_every_step_is_that_of_transformers(ours, value, theirs):
    torch = pytest.importorskip("torch")
    logits_BV = rows("plain", 1000)
    ours_BV = jax.nn.log_softmax(ours(logits_BV, jnp.full(6, value)))
    expected_BV = hugging_face(theirs, value)(None, torch.tensor(logits_BV)).log_softmax(-1)
    np.testing.assert_allclose(ours_BV, expected_BV.numpy(), rtol=1e-5, atol=1e-5)


def test_the_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    logits_BV, ids_BT = rows("plain", 1000), np.arange(60).reshape(6, 10) * 7
    seen_BV = np.zeros(logits_BV.shape, bool)
    np.put_along_axis(seen_BV, ids_BT, True, axis=1)
    theirs = hugging_face("RepetitionPenaltyLogitsProcessor", 1.3)
    expected_BV = theirs(torch.tensor(ids_BT), torch.tensor(logits_BV)).numpy()
    ours_BV = penalise_repetition(logits_BV, seen_BV, jnp.full(6, 1.3))
    np.testing.assert_allclose(ours_BV, expected_BV, rtol=1e-6)


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.5},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_hundred_thousand_draws_have_the_distribution(settings):
    logits_V = np.round(rows("plain", 40)[0])  # with ties
    logits_V[[3, 39]] = -INF
    seen_V = np.arange(40) % 3 == 0
    one = sampling_of(settings)
    everyone = Sampling(*(jnp.repeat(column, DRAWS) for column in one))
    logits_BV, seen_BV = (jnp.broadcast_to(x, (DRAWS, 40)) for x in (logits_V, seen_V))
    tokens = np.asarray(sample(logits_BV, seen_BV, everyone, keys_of(DRAWS, seed=3)))
    check_distribution(tokens, distribution(logits_V, seen_V, settings))


@pytest.mark.slow
def test_draws_from_a_wide_vocabulary_have_the_distribution():
    logits_V = rows("plain", 700)[0] / 3  # folded three times
    draw = jax.jit(lambda keys: samplers.draw_tokens(jnp.tile(logits_V, (len(keys), 1)), keys))
    tokens = [draw(keys) for keys in keys_of(DRAWS).reshape(10, -1)]
    check_distribution(np.concatenate(tokens), probabilities(logits_V))


def check_distribution(tokens: np.ndarray, expected_V: np.ndarray):
    """Chi-square over all tokens that are expected 5 times or more; the others together."""
    counts_V = np.bincount(tokens, minlength=len(expected_V))
    assert len(counts_V) == len(expected_V)
    assert (counts_V[expected_V == 0] == 0).all()
    is_rare_V = expected_V * len(tokens) < 5
    counts = np.append(counts_V[~is_rare_V], counts_V[is_rare_V].sum())
    expected = np.append(expected_V[~is_rare_V], expected_V[is_rare_V].sum()) * len(tokens)
    is_possible = expected > 0
    assert chisquare(counts[is_possible], expected[is_possible]).pvalue > 1e-4


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}], ids=str)
def test_one_candidate_is_the_lowest_of_the_most_likely_ids(settings):
    logits_BV = jnp.array([[0.0, 2.0, 1.0, 2.0], [-INF, -3.0, -3.0, -INF]] * 8)
    others = {"top_p": 0.5, "min_p": 0.9}
    for more in ({}, others):
        tokens_B = sample(
            logits_BV, logits_BV > 9, sampling_of(*[settings | more] * 16), keys_of(16)
        )
        assert tokens_B.tolist() == [1, 1] * 8


def test_a_penalty_counts_at_temperature_0():
    logits_BV = jnp.array([[1.0, 1.2, -0.5, -1.0]] * 16)
    sampling = sampling_of(*[{"temperature": 0.0, "repetition_penalty": 1.3}] * 16)
    assert sample(logits_BV, logits_BV == 1.2, sampling, keys_of(16)).tolist() == [0] * 16


@pytest.mark.parametrize(
    ("temperature", "dtype"), [(1.0, jnp.float32), (3e38, jnp.float32), (1e12, jnp.bfloat16)]
)
def test_padding_and_removed_tokens_are_never_drawn(temperature, dtype):
    logits_V = jnp.array([1.0, -INF, 0.5, -INF, PADDING_LOGIT, PADDING_LOGIT], dtype)
    logits_V = logits_V.astype(jnp.float32)
    logits_BV = jnp.tile(logits_V, (4000, 1))
    sampling = sampling_of(*[{"temperature": temperature, "repetition_penalty": 0.1}] * 4000)
    tokens_B = sample(logits_BV, jnp.ones(logits_BV.shape, bool), sampling, keys_of(4000))
    assert set(tokens_B.tolist()) == {0, 2}


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 1e-30}, {"top_p": 1e-45}, {"min_p": 0.999999}, {"repetition_penalty": 1e-45},
     {"temperature": 1e-45}, {"repetition_penalty": 3e38},
     {"top_p": 1e-30, "min_p": 0.999999, "top_k": 2}],
    ids=str,
)  # fmt: skip
def test_settings_at_their_limits_keep_a_token_that_may_be_drawn(settings):
    logits_BV = rows("removed", 777)
    seen_BV = np.arange(777)[None] % 2 == 0
    batch = sampling_of(*[settings] * 6)
    tokens_B = sample(logits_BV, np.tile(seen_BV, (6, 1)), batch, keys_of(6))
    assert all(logits_V[t] > -INF for logits_V, t in zip(logits_BV, tokens_B, strict=True))


def test_a_row_does_not_depend_on_the_others():
    """Neither a bit of its filtered logits nor its token, whatever the others ask for."""
    logits_BV = rows("plain", 777)
    seen_BV, keys_B = logits_BV > 4, keys_of(6)
    for settings in [*SETTINGS, {"temperature": 0.0}]:
        alone = sample(logits_BV, seen_BV, sampling_of(settings, *[{}] * 5), keys_B)[0]
        for other in [*SETTINGS, {"temperature": 0.0}]:
            beside = sampling_of(settings, *[other] * 5)
            changed_BV = logits_BV.copy()
            changed_BV[1:] = -changed_BV[1:]
            assert sample(changed_BV, seen_BV, beside, keys_B)[0] == alone, (settings, other)


@pytest.mark.parametrize(
    ("keep", "off", "on"),
    [(keep_top_k, 0, 3), (keep_top_p, 1.0, 0.5), (keep_min_p, 0.0, 0.5)],
)
def test_a_filter_leaves_the_rows_that_do_not_use_it_as_they_were(keep, off, on):
    logits_BV = rows("extreme", 777)
    kept_BV = np.asarray(keep(logits_BV, jnp.array([off, on, off, on, off, on])))
    np.testing.assert_array_equal(kept_BV[::2].view(np.int32), logits_BV[::2].view(np.int32))
    assert (kept_BV[1::2] == -INF).any(-1).all()


def test_the_sampler_runs_inside_a_compiled_loop():
    logits_BV, seen_BV, keys_B = rows("plain", 777), np.zeros((6, 777), bool), keys_of(6)
    sampling = sampling_of(*SETTINGS[-6:])

    def body(state):
        i, tokens_BT = state
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
        tokens_B = sample(jnp.roll(logits_BV, i, axis=1), seen_BV, sampling, keys)
        return i + 1, tokens_BT.at[:, i].set(tokens_B)

    start = (0, jnp.zeros((6, 5), jnp.int32))
    tokens_BT = jax.jit(lambda s: jax.lax.while_loop(lambda s: s[0] < 5, body, s))(start)[1]
    for i in range(5):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
        expected_B = sample(np.roll(logits_BV, i, axis=1), seen_BV, sampling, keys)
        np.testing.assert_array_equal(tokens_BT[:, i], expected_B)

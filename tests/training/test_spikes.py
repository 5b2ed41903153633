"""Statistics of losses against NumPy, what they refuse, and when a rise is one."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.cluster.mesh import make_mesh
from gptjax.training.skipped import count_of_skipped
from gptjax.training.spikes import (
    FRESH,
    IN_A_ROW,
    STEPS,
    WINDOW,
    LossStatistics,
    RiseWatch,
    as_numbers,
    from_numbers,
    is_spike,
    placed_statistics,
    with_loss,
)

NOISE = np.random.default_rng(0).normal(3.0, 0.1, 400).astype(np.float32)


@jax.jit
def after(statistics: LossStatistics, loss: Any) -> tuple[LossStatistics, jax.Array]:
    refused = is_spike(statistics, jnp.float32(loss), 6.0)
    finite = jnp.isfinite(loss)
    return with_loss(statistics, loss, refused & finite, finite & ~refused), refused


def of(losses: np.ndarray) -> LossStatistics:
    statistics = FRESH
    for loss in losses:
        statistics, refused = after(statistics, loss)
        assert not refused
    return statistics


def test_the_statistics_are_plain_averages_at_first_and_then_forget():
    some = of(NOISE[:STEPS])
    assert int(some.count) == STEPS
    assert float(some.mean) == pytest.approx(NOISE[:STEPS].mean(), rel=1e-5)
    assert float(some.variance) == pytest.approx(NOISE[:STEPS].var(), rel=1e-3)
    weights = 0.99 ** np.arange(200)[::-1]
    known = of(NOISE[:STEPS])
    expected = float(known.mean) * 0.99**200 + 0.01 * (weights * NOISE[STEPS : STEPS + 200]).sum()
    assert float(of(NOISE[: STEPS + 200]).mean) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("known", "loss", "expected"), [
    (STEPS, 4.5, True), (STEPS, 3.3, False), (STEPS - 1, 4.5, False),
    (STEPS, np.nan, False), (STEPS, np.inf, False), (STEPS, 0.5, False),
])  # fmt: skip
def test_only_a_loss_far_above_the_mean_of_enough_steps_is_a_spike(known, loss, expected):
    before = of(NOISE[:known])
    statistics, refused = after(before, loss)
    assert bool(refused) == expected
    if expected or not np.isfinite(loss):  # it does not enter
        assert as_numbers(statistics)[:3] == as_numbers(before)[:3]


def test_a_loss_that_has_moved_for_good_starts_the_statistics_over():
    statistics = of(NOISE[:STEPS])
    for number in range(IN_A_ROW):
        assert int(statistics.refused) == number
        statistics, refused = after(statistics, 8.0)
        assert refused
    assert as_numbers(statistics) == as_numbers(FRESH)
    assert not after(statistics, 8.0)[1]


def test_steps_that_are_refused_now_and_then_do_not_start_them_over():
    statistics = of(NOISE[:STEPS])
    for loss in NOISE[: IN_A_ROW + 1]:
        statistics, refused = after(statistics, 8.0)
        assert refused
        statistics, refused = after(statistics, loss)
        assert not refused


def test_statistics_come_back_from_json_bit_for_bit():
    statistics = of(NOISE[:150])
    numbers = json.loads(json.dumps(as_numbers(statistics)))
    back = placed_statistics(make_mesh(8), from_numbers(numbers))
    for x, y in zip(statistics, back, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)
        assert y.sharding.is_fully_replicated


def watched(losses: list[float], watch: RiseWatch, first: int = 1) -> RiseWatch:
    for step, loss in enumerate(losses, first):
        watch.see({"step": step, "train_loss": loss})
    return watch


STEADY = [float(x) for x in NOISE[: STEPS + WINDOW]]


def test_a_rise_that_lasts_is_found_with_its_first_and_last_step():
    watch = watched([*STEADY, 9.0, 9.0, 9.0, 9.0], RiseWatch(6.0))
    assert watch.found is None
    assert watch.is_rising
    watched([9.5], watch, len(STEADY) + 5)
    assert watch.found is not None
    assert (watch.found.first, watch.found.last) == (len(STEADY) + 1, len(STEADY) + 5)
    assert "3.0" in watch.found.words


@pytest.mark.parametrize("losses", [
    [*STEADY, 50.0, *STEADY],  # a single one
    [*STEADY, *[9.0, 3.0] * 8],  # half of them
    [*STEADY[: STEPS - 1], *[9.0] * WINDOW],  # too early to tell
    [*STEADY, *[0.1] * WINDOW],  # a fall
    [*STEADY, *[float("nan")] * WINDOW],
])  # fmt: skip
def test_nothing_else_is_a_rise(losses):
    assert watched(losses, RiseWatch(6.0)).found is None


def test_rows_of_skipped_steps_and_a_run_without_the_field_are_not_watched():
    watch = watched(STEADY, RiseWatch(6.0))
    for step in range(WINDOW):
        watch.see({"step": 500 + step, "train_loss": 9.0, "skipped": "spike"})
    assert watch.found is None
    off = watched([*STEADY, *[9.0] * WINDOW], RiseWatch(None))
    assert (off.found, off.state, off.is_rising) == (None, None, False)


def test_a_watch_that_was_kept_goes_on_as_if_it_had_not_stopped():
    unbroken, cut = RiseWatch(6.0), len(STEADY) - 3
    losses = [*STEADY, *[9.0] * 5]
    watched(losses, unbroken)
    resumed = RiseWatch(6.0)
    resumed.restore(json.loads(json.dumps(watched(losses[:cut], RiseWatch(6.0)).state)))
    watched(losses[cut:], resumed, cut + 1)
    assert resumed.found == unbroken.found is not None
    assert resumed.state == unbroken.state
    resumed.restore(None)
    assert (resumed.found, resumed.is_rising) == (None, False)


def test_skipped_steps_are_counted_by_reason_and_few_are_named():
    many = [{"step": step, "skipped": "not finite"} for step in range(1, 14)]
    found = count_of_skipped([*many, {"step": 20}, {"step": 30, "skipped": "spike"}])
    assert found.startswith("14 steps were skipped: gradients not finite in steps 1, 2, 3,")
    assert "9, 10 and 3 more; loss far above its mean in step 30" in found
    assert count_of_skipped([{"step": 20}]) == ""

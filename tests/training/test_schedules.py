"""Every schedule, step by step: against lists by hand, at its corners, and against Optax's own.

The corners are a run without warm-up, one shorter than its warm-up, and where one piece ends and
the next begins.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import optax
import pytest

from gptjax.base.errors import ConfigError
from gptjax.config import Config, OptimConfig
from gptjax.config.validation import validate
from gptjax.training.schedules import learning_rate_schedule

Shape = Literal["cosine", "linear", "wsd"]
SHAPES: tuple[Shape, ...] = ("cosine", "linear", "wsd")


def rates(cfg: OptimConfig, max_steps: int, steps: int) -> list[float]:
    schedule = learning_rate_schedule(cfg, max_steps)
    return [float(schedule(i)) for i in range(steps)]


def test_the_cosine_by_hand():
    cfg = OptimConfig(peak_lr=0.8, final_lr=0.2, warmup_steps=3)
    cosine = [0.2 + 0.6 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    expected = [0.2, 0.4, 0.6, *cosine, 0.2, 0.2]
    np.testing.assert_allclose(rates(cfg, max_steps=7, steps=10), expected, rtol=1e-6)


def test_the_first_step_already_learns_and_the_last_of_the_warm_up_is_below_the_peak():
    got = rates(OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=99), 1000, 101)
    np.testing.assert_allclose(got[:100], np.arange(1, 101) / 100, rtol=1e-5)
    assert got[100] < got[99] == 1.0


def test_without_warm_up_the_first_step_has_the_peak():
    cfg = OptimConfig(peak_lr=0.5, final_lr=0.1, warmup_steps=0)
    np.testing.assert_allclose(rates(cfg, 2, 4), [0.5, 0.3, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("decay_steps", "max_steps"), [(None, 6), (6, 100), (6, 3)])
def test_decay_steps_replaces_max_steps_as_the_end_of_the_schedule(decay_steps, max_steps, shape):
    cfg = OptimConfig(
        peak_lr=0.5, final_lr=0.05, warmup_steps=2, decay_steps=decay_steps, schedule=shape
    )
    got = rates(cfg, max_steps, 200)
    np.testing.assert_allclose(got[2], 0.5, rtol=1e-6)
    np.testing.assert_allclose(got[6:], 0.05, rtol=1e-6)
    assert got[5] > 0.051


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_shorter_than_its_warm_up_never_leaves_it(shape):
    cfg = OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=9, schedule=shape)
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
        with pytest.raises(ConfigError):
            validate(Config(optim=optim))
        return
    validate(Config(optim=optim))
    got = rates(optim, 1000, 20)
    assert max(got) == got[warmup_steps] == pytest.approx(1.0)
    np.testing.assert_allclose(got[11:], 0.1, rtol=1e-6)


def test_the_cosine_is_the_one_of_optax_bit_for_bit():
    cfg = OptimConfig(peak_lr=6e-4, final_lr=6e-5, warmup_steps=17)
    reference = optax.warmup_cosine_decay_schedule(6e-4 / 18, 6e-4, 17, 123, 6e-5)
    assert rates(cfg, 123, 140) == [float(reference(i)) for i in range(140)]


def test_the_straight_line_by_hand():
    cfg = OptimConfig(peak_lr=0.8, final_lr=0.2, warmup_steps=3, schedule="linear")
    expected = [0.2, 0.4, 0.6, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(rates(cfg, max_steps=7, steps=10), expected, rtol=1e-6)


def wsd(fraction: float, warmup_steps: int = 2) -> list[float]:
    cfg = OptimConfig(
        peak_lr=0.9, final_lr=0.1, warmup_steps=warmup_steps, schedule="wsd",
        cooldown_fraction=fraction,
    )  # fmt: skip
    return rates(cfg, max_steps=10, steps=13)


def test_flat_with_a_cooldown_by_hand():
    expected = [0.3, 0.6, *[0.9] * 4, 0.9, 0.7, 0.5, 0.3, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(wsd(0.4), expected, rtol=1e-6)


def test_the_share_that_cools_down_is_of_the_whole_schedule_to_the_nearest_step():
    assert [sum(r == pytest.approx(0.9) for r in wsd(f)) for f in (0.1, 0.26, 0.34)] == [8, 6, 6]


def test_no_cooldown_stays_at_the_peak():
    np.testing.assert_allclose(wsd(0.0), [0.3, 0.6, *[0.9] * 11], rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.8, 0.9, 1.0])
def test_a_cooldown_longer_than_what_the_warm_up_leaves_is_the_straight_line(fraction):
    line = OptimConfig(peak_lr=0.9, final_lr=0.1, warmup_steps=2, schedule="linear")
    np.testing.assert_allclose(wsd(fraction), rates(line, 10, 13), rtol=1e-6)
    assert wsd(fraction)[2] == pytest.approx(0.9)
    assert wsd(fraction)[3] < 0.9


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_flat_without_warm_up_starts_at_the_peak(fraction):
    got = wsd(fraction, warmup_steps=0)
    assert got[0] == pytest.approx(0.9)
    np.testing.assert_allclose(got[10:], 0.1, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_peak_of_zero_learns_nothing_before_the_end(shape):
    cfg = OptimConfig(peak_lr=0.0, final_lr=0.0, warmup_steps=2, schedule=shape)
    assert rates(cfg, 9, 12) == [0.0] * 12


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_start_warms_up_from_the_last_rate_and_changes_nothing_before(shape):
    cfg = OptimConfig(peak_lr=0.8, final_lr=0.2, warmup_steps=3, schedule=shape)
    again = dataclasses.replace(cfg, rewarm_steps=(7,))
    got = rates(again, 17, 30)
    assert got[:7] == rates(cfg, 7, 7)
    np.testing.assert_allclose(got[7:11], [0.35, 0.5, 0.65, 0.8], rtol=1e-6)
    assert got[11:17] == [pytest.approx(r) for r in rates(cfg, 10, 10)[4:]]
    np.testing.assert_allclose(got[17:], 0.2, rtol=1e-6)


def test_a_new_start_after_a_flat_schedule_has_no_warm_up_to_see():
    cfg = OptimConfig(
        peak_lr=0.8, final_lr=0.2, warmup_steps=2, schedule="wsd", cooldown_fraction=0.0,
        rewarm_steps=(5,),
    )  # fmt: skip
    np.testing.assert_allclose(rates(cfg, 10, 12)[2:], 0.8, rtol=1e-6)


def test_three_starts_are_each_as_long_as_they_say():
    cfg = OptimConfig(
        peak_lr=1.0, final_lr=0.0, warmup_steps=0, schedule="linear", rewarm_steps=(2, 6)
    )
    expected = [1, 0.5, 1, 0.75, 0.5, 0.25, 1, 0.5, 0, 0]
    np.testing.assert_allclose(rates(cfg, 8, 10), expected, atol=1e-6)

"""The standard errors against the spread of samples drawn anew (the bootstrap)."""

import math

import numpy as np
import pytest

from gptjax.evaluation.estimates import ratio_estimate, text_figures


def stretches(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Losses and tokens of stretches of uneven length, whose means differ."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 40, count)
    return tokens * rng.gamma(9.0, 0.4, count), tokens


def test_the_error_is_that_of_the_bootstrap():
    losses, tokens = stretches(300)
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 300, (4000, 300))
    means = losses[draws].sum(1) / tokens[draws].sum(1)
    mean, error = ratio_estimate(losses, tokens)
    assert mean == losses.sum() / tokens.sum()
    assert error == pytest.approx(means.std(), rel=0.05)
    figures = text_figures(losses, tokens, 3 * tokens)
    assert figures["perplexity_stderr"] == pytest.approx(np.exp(means).std(), rel=0.05)
    assert figures["bits_per_byte"] == pytest.approx(mean / 3 / math.log(2))
    assert figures["bits_per_byte_stderr"] == pytest.approx(
        (means / 3 / math.log(2)).std(), rel=0.05
    )


def test_stretches_of_one_length_have_the_usual_error():
    losses = stretches(50)[0]
    error = ratio_estimate(losses, np.full(50, 7))[1]
    assert error == pytest.approx((losses / 7).std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_an_unknown_error_is_none_and_so_is_the_rate_of_no_bytes():
    figures = text_figures([3.0], [2], [0])
    assert [figures[n] for n in ("stderr", "perplexity_stderr", "bits_per_byte")] == [None] * 3

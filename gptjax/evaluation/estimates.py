"""A mean over tokens, words or bytes, and its standard error.

Losses of neighbouring tokens depend on each other, so the unit of the error is a stretch of text:
a window, a page or an item, whatever its length.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Figures = dict[str, Any]
"""Numbers by name, or None. `NAME_stderr` is the standard error of NAME; `stderr` is that of
`loss`. A `confusion` is a list of lists, and `labels` are its names."""


def ratio_estimate(
    sums_N: Sequence[float] | np.ndarray, counts_N: Sequence[float] | np.ndarray
) -> tuple[float, float | None]:
    """The mean per counted thing over N stretches, and its standard error.

    The mean is `sum(sums) / sum(counts)`. The error is that of a ratio of two sums over drawn
    stretches (Cochran 1977, equation 6.13, without the correction for finite populations); for
    stretches of equal length it is the usual error of their means. For one stretch it is None.

    >>> ratio_estimate([2.0, 4.0, 6.0], [2, 2, 2])
    (2.0, 0.5773502691896257)
    """
    sums, counts = np.asarray(sums_N, np.float64), np.asarray(counts_N, np.float64)
    mean, stretches = float(sums.sum() / counts.sum()), len(sums)
    if stretches == 1:
        return mean, None
    squares = float(np.square(sums - mean * counts).sum())
    return mean, math.sqrt(squares * stretches / (stretches - 1)) / float(counts.sum())


def text_figures(
    losses_N: Sequence[float] | np.ndarray,
    tokens_N: Sequence[int] | np.ndarray,
    bytes_N: Sequence[int] | np.ndarray,
) -> Figures:
    """Loss, perplexity and bits per byte from N stretches of text, each with its error.

    `losses_N` are summed losses in nats, `tokens_N` counts of scored tokens, and `bytes_N` the
    bytes of their text. `stderr` is the error of `loss`; to first order the error of a perplexity
    is the perplexity times that of its logarithm. Bits per byte is None for text without bytes.

    >>> text_figures([2.0, 4.0], [2, 2], [4, 4])["loss"]
    1.5
    """
    loss, error = ratio_estimate(losses_N, tokens_N)
    figures: Figures = {
        "loss": loss,
        "stderr": error,
        "perplexity": (perplexity := bounded_exp(loss)),
        "perplexity_stderr": times(error, perplexity),
        "bits_per_byte": None,
        "bits_per_byte_stderr": None,
    }
    if any(bytes_N):
        per_byte, error = ratio_estimate(losses_N, bytes_N)
        figures["bits_per_byte"] = per_byte / math.log(2)
        figures["bits_per_byte_stderr"] = times(error, 1 / math.log(2))
    figures["tokens"], figures["bytes"] = int(np.sum(tokens_N)), int(np.sum(bytes_N))
    return figures


def times(error: float | None, factor: float) -> float | None:
    """The error of a multiple; None if the error is unknown.

    >>> times(0.5, 3.0), times(None, 3.0)
    (1.5, None)
    """
    return None if error is None else error * factor


def bounded_exp(loss: float) -> float:
    """`e` to the power of a loss; the largest number that JSON can hold for an absurd loss.

    >>> bounded_exp(0.0), bounded_exp(1e6) > 1e300
    (1.0, True)
    """
    return math.exp(min(loss, 709.0))

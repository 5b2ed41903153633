"""Figures of a classification, all read off its confusion matrix [C, C]: truth, then guess."""

from collections.abc import Mapping

import numpy as np


def class_figures(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Accuracy, macro F1 and the F1 of the rarest class."""
    confusion = np.asarray(sums["confusion"], np.float64)
    f1 = f1_scores(confusion)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": float(f1.mean()),
        "f1": float(f1[np.argmin(confusion.sum(1))]),
    }


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """The F1 of every class; 0 where nothing is of the class and nothing taken for it.

    >>> f1_scores(np.array([[3, 1], [0, 0]])).round(3).tolist()
    [0.857, 0.0]
    """
    right = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1)
    return 2 * right / np.maximum(either, 1e-12)

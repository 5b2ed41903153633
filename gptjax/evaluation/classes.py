"""Figures of a classification, all read off its confusion matrix [C, C]: truth, then guess."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def class_figures(confusion: np.ndarray, labels: Sequence[str], rarer: str = "") -> dict[str, Any]:
    """Accuracy, macro F1, `f1`, the F1 of each class and the matrix itself.

    `f1` is that of the class `rarer`, or without one the macro F1.

    >>> found = class_figures(np.array([[8, 1], [0, 3]]), ("ham", "spam"), "spam")
    >>> {name: round(x, 3) for name, x in found.items() if name != "confusion"}
    {'accuracy': 0.917, 'macro_f1': 0.899, 'f1': 0.857, 'f1/ham': 0.941, 'f1/spam': 0.857}
    """
    counts = np.asarray(confusion, np.float64)
    f1 = f1_scores(counts)
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "macro_f1": float(f1.mean()),
        "f1": float(f1[labels.index(rarer)] if rarer else f1.mean()),
        **{f"f1/{label}": float(x) for label, x in zip(labels, f1, strict=True)},
        "confusion": counts.astype(int).tolist(),
    }


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """The F1 of every class; 0 where nothing is of the class and nothing taken for it.

    >>> f1_scores(np.array([[3, 1], [0, 0]])).round(3).tolist()
    [0.857, 0.0]
    """
    right = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1)
    return 2 * right / np.maximum(either, 1e-12)


def confusion_of(truths: Sequence[int], guesses: Sequence[int], classes: int) -> np.ndarray:
    """The matrix of the number of examples of each truth and guess.

    >>> confusion_of([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]
    """
    found = np.zeros((classes, classes), np.int64)
    np.add.at(found, (np.asarray(truths, int), np.asarray(guesses, int)), 1)
    return found


def confusion_lines(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> list[str]:
    """The matrix as lines of text, truths down and guesses across.

    >>> print(*confusion_lines([[8, 1], [0, 3]], ("ham", "spam")), sep="\\n")
    truth  ham  spam  <- guess
    ham      8     1
    spam     0     3
    """
    first = max(len("truth"), *map(len, labels))
    numbers = [[f"{n:,}" for n in row] for row in confusion]
    widths = [
        max(len(label), *(len(row[at]) for row in numbers)) for at, label in enumerate(labels)
    ]

    def line(name: str, cells: Sequence[str]) -> str:
        cut = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return "  ".join([f"{name:{first}}", *cut])

    head = line("truth", labels) + "  <- guess"
    return [head, *(line(name, row) for name, row in zip(labels, numbers, strict=True))]

"""Validation loss on the fixed held-out set: per token, per byte, and how sure that is.

All sums are weighted by tokens and go over every device and process, so the number is the same
wherever it is measured.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Batch = dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """A validation result."""

    loss: float
    """Nats per token."""
    stderr: float
    """Standard error of `loss`, from the spread between windows."""
    bits_per_byte: float
    """Bits per byte of text, which compares models with different tokenizers."""


def evaluate(
    step: Callable[[Batch], dict[str, Any]], batches: Iterable[Batch], target_bytes: int
) -> Validation:
    """Sum `step` over `batches`; `target_bytes` is the text length of all their targets."""
    total: dict[str, float] = defaultdict(float)
    for batch in batches:
        for name, value in step(batch).items():
            total[name] += float(value)
    loss, rows = total["loss"] / total["tokens"], total["rows"]
    variance = max(0.0, total["square"] / rows - (total["mean"] / rows) ** 2)
    return Validation(
        loss=loss,
        stderr=math.sqrt(variance / max(1.0, rows - 1)),
        bits_per_byte=total["loss"] / math.log(2) / max(1, target_bytes),
    )


def target_bytes(batches: Iterable[Batch], bytes_per_token: np.ndarray) -> int:
    """Bytes of text behind every target that counts."""
    return sum(
        int(bytes_per_token[batch["tokens"][:, 1:]][batch["weights"] > 0].sum())
        for batch in batches
    )

"""Validation loss on the fixed held-out set: per token, per byte, and its standard error.

All sums are weighted by tokens and go over every device and process, so the loss is the same on
any number of devices.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np


@dataclass(frozen=True)
class Validation:
    """A validation result."""

    loss: float
    """Nats per token."""
    stderr: float
    """Standard error of `loss`, from the spread between windows."""
    bits_per_byte: float | None
    """Bits per byte of text, which compares models with different tokenizers; None without text."""
    by_source: tuple[tuple[str, float], ...] = ()
    """The name and the loss of each named source, such as those of a mixture."""
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Sums over rows of whatever else the task measures, such as a confusion matrix."""


class ValidationPart(NamedTuple):
    """The validation set of one source, its share of the mixture, and the bytes of its targets."""

    name: str
    share: float
    batches: Iterable[dict[str, Any]]
    target_bytes: int


def evaluate_part(
    step: Callable[[dict[str, Any]], dict[str, Any]],
    batches: Iterable[dict[str, Any]],
    target_bytes: int,
) -> Validation:
    """Sum `step` over `batches`; `target_bytes` is the text length of all their targets, or 0."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((), np.float64))
    for batch in batches:
        for name, value in step(batch).items():
            sums[name] = sums[name] + np.asarray(jax.device_get(value), np.float64)
    total = {name: float(value) for name, value in sums.items() if value.ndim == 0}
    loss, rows = total["loss"] / total["tokens"], total["rows"]
    variance = max(0.0, total["square"] / rows - (total["mean"] / rows) ** 2)
    return Validation(
        loss=loss,
        stderr=math.sqrt(variance / max(1.0, rows - 1)),
        bits_per_byte=total["loss"] / math.log(2) / target_bytes if target_bytes else None,
        sums={name: value for name, value in sums.items() if value.ndim},
    )


def evaluate_parts(
    step: Callable[[dict[str, Any]], dict[str, Any]], parts: Sequence[ValidationPart]
) -> Validation:
    """Evaluate every source alone, and all of them together, weighted by their shares."""
    results = [evaluate_part(step, part.batches, part.target_bytes) for part in parts]
    by_source = tuple((p.name, r.loss) for p, r in zip(parts, results, strict=True) if p.name)
    if len(parts) == 1:
        return replace(results[0], by_source=by_source)
    shares = [part.share for part in parts]
    loss, bits_per_byte = _weighted(shares, [result.loss for result in results]), None
    if all(result.bits_per_byte for result in results):
        bits = [result.loss / math.log(2) for result in results]
        bytes_per_token = [b / (r.bits_per_byte or 1) for b, r in zip(bits, results, strict=True)]
        bits_per_byte = _weighted(shares, bits) / _weighted(shares, bytes_per_token)
    return Validation(
        loss=loss,
        stderr=math.hypot(*(s * r.stderr for s, r in zip(shares, results, strict=True))),
        bits_per_byte=bits_per_byte,
        by_source=by_source,
    )


def _weighted(shares: Sequence[float], values: Sequence[float]) -> float:
    return sum(share * value for share, value in zip(shares, values, strict=True))

"""Steps that were skipped: each is said at once, and all of them at the end."""

from collections.abc import Sequence

from gptjax.runs.metrics import Row
from gptjax.training.feed import NOT_FINITE, REFUSED

MOST_NAMED = 10  # steps of each reason in one line
WORDS = {NOT_FINITE: "gradients not finite", REFUSED: "loss far above its mean"}


def said_of(row: Row, zscore: float | None) -> str:
    """A sentence about the skipped step of a row."""
    if row["skipped"] == NOT_FINITE:
        return f"step {row['step']} was skipped: its gradients are not finite"
    return (
        f"step {row['step']} was skipped: its loss, {row['train_loss']:.4f}, is more than "
        f"{zscore:g} standard deviations above the mean"
    )


def count_of_skipped(rows: Sequence[Row]) -> str:
    """All skipped steps of a run in words; empty without any.

    >>> count_of_skipped([{"step": 3, "skipped": "spike"}, {"step": 4}])
    '1 step was skipped: loss far above its mean in step 3'
    """
    by_reason = {
        reason: [r["step"] for r in rows if r.get("skipped") == reason] for reason in WORDS
    }
    total = sum(map(len, by_reason.values()))
    if not total:
        return ""
    listed = "; ".join(
        f"{WORDS[reason]} in step{'s' * (len(steps) > 1)} {_some(steps)}"
        for reason, steps in by_reason.items()
        if steps
    )
    return f"{total:,} step{'s were' if total > 1 else ' was'} skipped: {listed}"


def _some(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - MOST_NAMED:,} more" if len(steps) > MOST_NAMED else ""
    return ", ".join(map(str, steps[:MOST_NAMED])) + more

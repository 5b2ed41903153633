"""The early end of a fine-tuning: too many validations in a row without a better one.

Only the rows of metrics.jsonl decide, so that a run that was killed and started again ends after
the same step as an unbroken one.
"""

from collections.abc import Sequence

from gptjax.config import TrainConfig
from gptjax.runs.metrics import Row
from gptjax.runs.ranking import LOSS


def early_end(rows: Sequence[Row], train: TrainConfig) -> str | None:
    """Words about why a run with these rows has ended; None if it goes on.

    >>> rows = [{"step": 10, "val_loss": 0.5}, {"step": 20, "val_loss": 0.6}]
    >>> early_end(rows, TrainConfig(patience=2))
    >>> early_end(rows, TrainConfig(patience=1))
    'train.patience: val_loss was 0.5000 after step 10, and no better in the next validation'
    """
    name = f"val_{train.best_by}"
    measured = [(row["step"], row[name]) for row in rows if name in row]
    if train.patience is None or not measured:
        return None
    sign = 1 if train.best_by == LOSS else -1
    best = min(range(len(measured)), key=lambda i: sign * measured[i][1])  # the first of equals
    if len(measured) - 1 - best < train.patience:
        return None
    step, value = measured[best]
    many = "" if train.patience == 1 else f" {train.patience}"
    return (
        f"train.patience: {name} was {value:.4f} after step {step}, and no better in the next"
        f"{many} validation{'s' * (train.patience > 1)}"
    )

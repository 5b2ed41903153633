"""The early end of a fine-tuning: too many validations in a row without a better one.

Only the rows of metrics.jsonl decide, so that a run that was killed and started again ends after
the same step as an unbroken one.
"""

from collections.abc import Sequence

from gptjax.config import TrainConfig
from gptjax.runs.metrics import Row
from gptjax.runs.ranking import rank_of

NOT_FINITE = (float("inf"),)  # ranks behind all others


def early_end(rows: Sequence[Row], train: TrainConfig) -> str | None:
    """Words about why a run with these rows has ended; None if it goes on.

    The best validation is that of the best checkpoint: of equal values the lower loss is better.

    >>> rows = [{"step": 10, "val_loss": 0.5}, {"step": 20, "val_loss": 0.6}]
    >>> early_end(rows, TrainConfig(patience=2))
    >>> early_end(rows, TrainConfig(patience=1))
    'train.patience: val_loss was 0.5000 after step 10, and no better in the next validation'
    """
    name = f"val_{train.best_by}"
    measured = [row for row in rows if name in row]
    if train.patience is None or not measured:
        return None
    ranks = [rank_of(train.best_by, row) or NOT_FINITE for row in measured]
    best = ranks.index(min(ranks))
    if len(measured) - 1 - best < train.patience:
        return None
    step, value = measured[best]["step"], measured[best][name]
    many = "" if train.patience == 1 else f" {train.patience}"
    return (
        f"train.patience: {name} was {value:.4f} after step {step}, and no better in the next"
        f"{many} validation{'s' * (train.patience > 1)}"
    )

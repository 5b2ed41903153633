"""The numbers of a row of metrics.jsonl, as trackers take them."""

from gptjax.runs.metrics import Row


def numbers_of(row: Row) -> dict[str, float]:
    """The numbers of a row by their names, those of its parts as PART/NAME; without its step.

    >>> numbers_of({"step": 3, "train_loss": 2.5, "seconds": {"training": 9.0}})
    {'train_loss': 2.5, 'seconds/training': 9.0}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}/{part}": number for part, number in numbers_of(value).items()}
        elif name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found

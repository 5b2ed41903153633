"""The end of a classification: what its best checkpoint gets right, and the picture of it."""

from typing import Any

from gptjax.evaluation.labels import Classifier
from gptjax.runs.confusion import MOST_CLASSES_DRAWN, plot_confusion
from gptjax.training.finishing import Finished

CONFUSION = "confusion.png"


def measure_splits(finished: Finished) -> dict[str, Any] | None:
    """Figures of the validation and test splits for results.json; confusion.png of the test split.

    Without examples for the test there are only those of the validation; without these either,
    only the labels.
    """
    run, data, say = finished.run, finished.data, finished.say
    classifier, labels = Classifier(run), run.config.classify.labels
    found: dict[str, Any] = {}
    for split, examples in (("test", data.test), ("val", data.validation)):
        if finished.stop:
            return None
        if len(examples):
            figures = classifier.figures(examples, lambda done: finished.heartbeat())
            found |= _named(split, figures, len(examples), labels)
    found |= {"labels": list(labels), "val_loss": finished.val_loss}
    if not (len(data.test) or len(data.validation)):
        return found
    split = "test" if len(data.test) else "val"
    prefix = "" if split == "test" else "val_"
    say(
        f"{split:8} {found[f'{split}_examples']:,} examples: accuracy "
        f"{found[f'{split}_accuracy']:.2%}, F1 {found[f'{split}_f1']:.4f}, macro F1 "
        f"{found[f'{split}_macro_f1']:.4f} (checkpoint of step {run.step})"
    )
    if len(labels) > MOST_CLASSES_DRAWN:
        say(
            f"{CONFUSION} is not drawn: {len(labels)} classes are more than {MOST_CLASSES_DRAWN}; "
            "results.json has the counts"
        )
        return found
    name = "test" if split == "test" else "validation"
    title = f"{finished.directory.name}: {name} split, {found[f'{split}_accuracy']:.1%} right"
    try:
        path = finished.directory / CONFUSION
        plot_confusion(found[f"{prefix}confusion"], labels, title, path)
    except Exception as error:  # a picture that cannot be drawn costs no result
        say(f"{CONFUSION} was not drawn: {type(error).__name__}: {str(error)[:200]}")
    return found


def _named(split: str, figures: dict[str, Any], size: int, labels: tuple[str, ...]) -> dict:
    """The figures under the names of results.json."""
    prefix = "" if split == "test" else f"{split}_"
    return {
        f"{split}_examples": size,
        **{f"{split}_{name}": figures[name] for name in ("accuracy", "f1", "macro_f1")},
        f"{split}_f1_by_class": {label: figures[f"f1/{label}"] for label in labels},
        f"{prefix}confusion": figures["confusion"],
    }

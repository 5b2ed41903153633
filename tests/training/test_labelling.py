"""The end of a classification: its picture is left out where nobody could read it."""

from types import SimpleNamespace
from typing import Any

import pytest

from gptjax.evaluation.classes import class_figures
from gptjax.training import labelling


class Diagonal:
    """A classifier that has every class right once."""

    def __init__(self, run: Any):
        self._labels = run.config.classify.labels

    def figures(self, examples: Any, progress: Any) -> dict[str, Any]:
        eye = [[int(i == j) for j in self._labels] for i in self._labels]
        return class_figures(eye, self._labels)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("classes", "is_drawn"), [(2, True), (51, False)])
def test_a_picture_of_too_many_classes_is_left_out_and_said(
    classes, is_drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(labelling, "Classifier", Diagonal)
    labels, said = tuple(f"class {n}" for n in range(classes)), []
    run: Any = SimpleNamespace(
        config=SimpleNamespace(classify=SimpleNamespace(labels=labels)), step=3
    )
    finished: Any = SimpleNamespace(
        run=run, data=SimpleNamespace(test=labels, validation=labels), say=said.append,
        stop=False, heartbeat=lambda: None, val_loss=0.5, directory=tmp_path,
    )  # fmt: skip
    found = labelling.measure_splits(finished)
    assert found is not None
    assert found["test_accuracy"] == 1.0
    assert (tmp_path / "confusion.png").exists() == is_drawn
    assert any("is not drawn: 51 classes" in line for line in said) != is_drawn

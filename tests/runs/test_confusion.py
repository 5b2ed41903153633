"""confusion.png has a cell for each truth and guess, darker the larger its share of the truth."""

import numpy as np
import pytest
from matplotlib.image import imread

from gptjax.runs.confusion import plot_confusion


@pytest.mark.parametrize("classes", [2, 20])
def test_the_diagonal_of_a_good_classifier_is_dark(classes, tmp_path):
    labels = [f"a class with a long name {n}" for n in range(classes)]
    path = tmp_path / "confusion.png"
    size = {}
    for right in (99, 0):
        matrix = np.ones((classes, classes), int) + right * np.eye(classes, dtype=int)
        plot_confusion(matrix.tolist(), labels, "a run", path)
        picture = imread(path)[..., :3]
        size[right] = picture.shape, int(((picture[..., 0] < 0.2) & (picture[..., 2] > 0.35)).sum())
    assert list(tmp_path.iterdir()) == [path]
    assert size[99][0] == size[0][0]
    cells = (0.62 * 110) ** 2 * classes
    assert size[99][1] - size[0][1] > 0.5 * cells


def test_a_class_without_examples_has_an_empty_row(tmp_path):
    path = tmp_path / "confusion.png"
    plot_confusion([[3, 1], [0, 0]], ["there", "missing"], "a run", path)
    assert path.exists()


def test_names_are_text_and_no_formula(tmp_path):
    path = tmp_path / "confusion.png"
    plot_confusion([[3, 1], [0, 2]], ["$\\frac$", "from $5 to $10"], "run $x^$", path)
    assert path.exists()

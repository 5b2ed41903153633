"""loss.png is drawn from whatever rows there are, whole or not at all, without a display."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from gptjax.runs.curves import F1, RATE, RIGHT, TRAIN, VALIDATION, plot_curves, smoothed

STEPS = range(1, 41)
TRAINING = [
    {"step": s, "train_loss": 3.0 + 1 / s, "learning_rate": 1e-3 * min(s, 10)} for s in STEPS
]
VALIDATED = [{**row, "val_loss": 4.0 - row["step"] / 40} if row["step"] % 10 == 0 else row
             for row in TRAINING]  # fmt: skip


def drawn(rows, tmp_path: Path, tokens_per_step: int = 512) -> np.ndarray:
    """The picture, [height, width, 3]."""
    path = tmp_path / "loss.png"
    plot_curves(rows, tokens_per_step, "a run", path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]
    return imread(path)[..., :3]


def pixels_of(colour: str, picture: np.ndarray) -> int:
    """Pixels that have just this colour."""
    wanted = np.array(to_rgb(colour), np.float32)
    return int((np.abs(picture - wanted).max(-1) < 1e-3).sum())


@pytest.mark.parametrize(
    ("rows", "train", "val", "rate"),
    [
        ([], False, False, False),
        (TRAINING, True, False, True),
        (VALIDATED, True, True, True),
        ([{"step": 5, "val_loss": 1.0}], False, True, False),
        ([{"step": 5}, {"step": 6, "grad_norm": 1.0}], False, False, False),
    ],
    ids=["empty", "no validation", "validation", "validation alone", "skipped"],
)
def test_a_curve_is_there_when_its_numbers_are(rows, train, val, rate, tmp_path):
    picture = drawn(rows, tmp_path)
    assert picture.shape == (715, 880, 3)
    assert (pixels_of(VALIDATION, picture) > 20) == val
    assert (pixels_of(TRAIN, picture) > 20) == train
    assert (pixels_of(RATE, picture) > 20) == rate


def test_a_classification_has_its_accuracy_and_f1_between_them(tmp_path):
    figures = {"val_accuracy": 0.9, "val_macro_f1": 0.7}
    rows = [{**row, **figures} if "val_loss" in row else row for row in VALIDATED]
    picture = drawn(rows, tmp_path)
    assert picture.shape == (880, 880, 3)
    for colour in (VALIDATION, RIGHT, F1, RATE):
        assert pixels_of(colour, picture) > 20


@pytest.mark.parametrize("row", [TRAINING[0], VALIDATED[9]], ids=["training", "validation"])
def test_a_run_of_one_row_has_a_picture(row, tmp_path):
    assert drawn([row], tmp_path).shape == (715, 880, 3)


def test_the_same_rows_give_the_same_picture_and_others_another(tmp_path):
    first = drawn(VALIDATED, tmp_path)
    assert np.array_equal(first, drawn(VALIDATED, tmp_path))
    assert not np.array_equal(first, drawn(VALIDATED[:-10], tmp_path))
    assert not np.array_equal(first, drawn(VALIDATED, tmp_path, tokens_per_step=2**20))


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    plot_curves(TRAINING, 512, "a run", path)
    before = path.read_bytes()

    def half(_, file):
        file.write(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", half)
    with pytest.raises(OSError, match="disk full"):
        plot_curves(TRAINING[:5], 512, "a run", path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("n", [1, 49, 50, 100, 333])
def test_the_smoothed_curve_is_a_trailing_mean_over_a_fiftieth_of_the_run(n):
    values = np.random.default_rng(n).normal(size=n)
    width = max(1, n // 50)
    expected = [values[max(0, i + 1 - width) : i + 1].mean() for i in range(n)]
    np.testing.assert_allclose(smoothed(list(values)), expected, rtol=0, atol=1e-12)


def test_drawing_needs_no_display_and_loads_no_window_system(tmp_path):
    script = """
import sys
from pathlib import Path
from gptjax.runs.curves import plot_curves
assert "matplotlib" not in sys.modules
plot_curves([{"step": 1, "train_loss": 2.0}], 64, "a run", Path("loss.png"))
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "MPLBACKEND": "tkagg"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert imread(tmp_path / "loss.png").shape[:2] == (715, 880)

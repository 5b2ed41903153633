"""confusion.png: which classes are taken for which, as counts and as shares of each true class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptjax.base.files import replaced
from gptjax.runs.quiet import silent_matplotlib

CELL = 0.62  # inches
LONGEST_NAME = 18  # letters of a label that are shown
MOST_CLASSES_DRAWN = 50  # 31 inches
DARK = 0.5  # share above which a cell is dark, and its text white


@silent_matplotlib()
def plot_confusion(
    confusion: Sequence[Sequence[int]], labels: Sequence[str], title: str, path: Path
) -> None:
    """Draw a matrix [C, C], truths down and guesses across, into a PNG.

    A cell has its count, and the share of its row; its colour is that share.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, int)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    classes, names = len(counts), [_shortened(label) for label in labels]
    side = max(3.2, CELL * classes)
    figure = Figure(figsize=(side + 2.2, side + 1.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 11 if classes <= 4 else 7
    for truth in range(classes):
        for guess in range(classes):
            if count := counts[truth, guess]:
                share = shares[truth, guess]
                colour = "white" if share > DARK else "#1d2b3a"
                text = f"{count:,}\n{share:.1%}"
                axes.text(guess, truth, text, ha="center", va="center", color=colour, fontsize=size)
    turned = classes > 4
    angle = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(range(classes), names, parse_math=False, **angle)
    axes.set_yticks(range(classes), names, parse_math=False)
    axes.set_xlabel("guess")
    axes.set_ylabel("truth")
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]

    with replaced(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _shortened(label: str) -> str:
    """A label without its middle, if it is long."""
    half = LONGEST_NAME // 2
    return label if len(label) <= LONGEST_NAME else f"{label[:half]}…{label[1 - half :]}"

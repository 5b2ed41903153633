"""loss.png: training and validation loss of a run, and below them the learning rate.

A classification has its accuracy and macro F1 between them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.base.files import replaced
from gptjax.runs.metrics import Row
from gptjax.runs.quiet import silent_matplotlib

TRAIN, VALIDATION, RATE = "#9bb8d3", "#c8553d", "#4a6b57"
RIGHT, F1 = "#7a4d8b", "#d39b2a"
SMOOTH = 0.02  # share of the run that the smoothed training curve averages over


@silent_matplotlib()
def plot_curves(
    rows: Sequence[Row],
    tokens_per_step: int | None,
    title: str,
    path: Path,
    unit: str = "token",
) -> None:
    """Draw the pictures from the rows of metrics.jsonl, one above the other, into a PNG.

    If `tokens_per_step` is None, because steps differ in size, there is no second axis of tokens.
    `unit` is what losses are means over.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    right = [(r["step"], r["val_accuracy"], r["val_macro_f1"]) for r in rows if "val_accuracy" in r]
    heights = [3, 1.4, 1] if right else [3, 1]
    figure = Figure(figsize=(8, 8 if right else 6.5), dpi=110, layout="constrained")
    losses, *shares, rates = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    train = [(r["step"], r["train_loss"]) for r in rows if "train_loss" in r]
    val = [(r["step"], r["val_loss"]) for r in rows if "val_loss" in r]
    rate = [(r["step"], r["learning_rate"]) for r in rows if "learning_rate" in r]

    if train:
        steps, values = zip(*train, strict=True)
        losses.plot(steps, values, color=TRAIN, linewidth=0.8, label="training, each step")
        losses.plot(steps, smoothed(values), color="#2f5d8a", linewidth=1.6, label="training, mean")
    if val:
        steps, values = zip(*val, strict=True)
        label = f"validation, last {values[-1]:.3f}"
        losses.plot(
            steps, values, color=VALIDATION, linewidth=1.6, marker="o", markersize=3, label=label
        )
    for axes in shares:
        _draw_shares(axes, right)
    if rate:
        rates.plot(*zip(*rate, strict=True), color=RATE, linewidth=1.6)

    losses.set_title(title, loc="left", fontsize=11)
    losses.set_ylabel(f"loss (nats per {unit})")
    if train or val:
        losses.legend(frameon=False)
    if tokens_per_step is not None:
        millions = tokens_per_step / 1e6
        functions = (lambda step: step * millions, lambda tokens: tokens / millions)
        losses.secondary_xaxis("top", functions=functions).set_xlabel("million tokens")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_xlabel("step")
    for axes in (losses, *shares, rates):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    with replaced(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _draw_shares(axes: Any, right: Sequence[tuple[int, float, float]]) -> None:
    """Accuracy and macro F1 of each validation; the last values are in the legend."""
    steps, accuracy, f1 = zip(*right, strict=True)
    looks: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3}
    axes.plot(steps, accuracy, color=RIGHT, label=f"accuracy, last {accuracy[-1]:.1%}", **looks)
    axes.plot(steps, f1, color=F1, label=f"macro F1, last {f1[-1]:.3f}", **looks)
    axes.set_ylabel("validation")
    axes.set_ylim(top=1)
    axes.legend(frameon=False, loc="best")


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and those before it, over a trailing window of the run."""
    width = max(1, int(len(values) * SMOOTH))
    result, window = [], 0.0
    for i, value in enumerate(values):
        window += value - (values[i - width] if i >= width else 0.0)
        result.append(window / min(i + 1, width))
    return result

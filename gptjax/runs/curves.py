"""loss.png: training and validation loss of a run, and below them the learning rate."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.runs.metrics import Row
from gptjax.runs.quiet import silent_matplotlib

TRAIN, VALIDATION, RATE = "#9bb8d3", "#c8553d", "#4a6b57"
SMOOTH = 0.02  # share of the run that the smoothed training curve averages over


@silent_matplotlib()
def plot_curves(rows: Sequence[Row], tokens_per_step: int | None, title: str, path: Path) -> None:
    """Draw both pictures from the rows of metrics.jsonl, one above the other, into a PNG.

    If `tokens_per_step` is None, because steps differ in size, there is no second axis of tokens.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), dpi=110, layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    train = [(r["step"], r["train_loss"]) for r in rows if "train_loss" in r]
    val = [(r["step"], r["val_loss"]) for r in rows if "val_loss" in r]
    rate = [(r["step"], r["learning_rate"]) for r in rows if "learning_rate" in r]

    if train:
        steps, values = zip(*train, strict=True)
        losses.plot(steps, values, color=TRAIN, linewidth=0.8, label="training, each step")
        losses.plot(steps, _smooth(values), color="#2f5d8a", linewidth=1.6, label="training, mean")
    if val:
        steps, values = zip(*val, strict=True)
        label = f"validation, last {values[-1]:.3f}"
        losses.plot(
            steps, values, color=VALIDATION, linewidth=1.6, marker="o", markersize=3, label=label
        )
    if rate:
        rates.plot(*zip(*rate, strict=True), color=RATE, linewidth=1.6)

    losses.set_title(title, loc="left", fontsize=11)
    losses.set_ylabel("loss (nats per token)")
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
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a trailing window of the run."""
    width = max(1, int(len(values) * SMOOTH))
    result, window = [], 0.0
    for i, value in enumerate(values):
        window += value - (values[i - width] if i >= width else 0.0)
        result.append(window / min(i + 1, width))
    return result

"""The curves of runs as few numbers: points for the eye, in which every spike stays visible."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from gptjax.config.names import TESTS
from gptjax.runs.curves import smoothed
from gptjax.runs.metrics import Row
from gptjax.runs.recorded import Recorded

BUCKETS = 900  # of one curve alone: no screen shows more side by side
FEWEST = 150  # of one curve among many
KNOTS = 200  # of the line from steps to tokens
MOST_MARKS = 400
DIGITS = 6
FAINT, LINE, DOTS = "faint", "line", "dots"
MEAN = "mean"  # in place of a field of the rows: the training loss, averaged


class Curve(NamedTuple):
    """A curve of a panel: what it shows, the field of the rows that holds it, and its looks."""

    label: str
    field: str
    looks: str = LINE


class Panel(NamedTuple):
    """Curves over one axis."""

    title: str
    unit: str
    curves: list[Curve]
    is_wide: bool = False
    format: str = "number"
    """How values are written: `number`, `share`, `count` or `small`."""


def panels_of(run: Recorded) -> list[Panel]:
    """The panels that a run has values for, in the order of a page."""
    fields, unit = run.fields, run.unit
    sources = [f for f in fields if f.startswith("val_loss/")]
    shares = {"val_accuracy": "accuracy", "val_macro_f1": "macro F1", "val_f1": "F1"}
    tests = [f for f in fields if f.split("/")[0] in TESTS]
    scored = dict.fromkeys(f.split("/", 1)[1] for f in tests if "stderr" not in f)
    per = f"nats per {unit}"
    training = [Curve("training, each step", "train_loss", FAINT), Curve("training, mean", MEAN)]
    has_training = training if "train_loss" in fields else []
    found = [
        Panel("Loss", per, [*has_training, Curve("validation", "val_loss", DOTS)], True),
        Panel(
            "Validation loss by source", per,
            [Curve(f.split("/", 1)[1], f, DOTS) for f in sources], True,
        ),
        Panel(
            "Accuracy and F1", "validation",
            [Curve(name, f, DOTS) for f, name in shares.items()], True, "share",
        ),
        *[
            Panel(name.replace("_", " "), "", [
                Curve(f.split("/")[0], f, DOTS) for f in tests if f.split("/", 1)[1] == name
            ])
            for name in scored
        ],
        Panel("Learning rate", "", [Curve("learning rate", "learning_rate")], False, "small"),
        Panel("Gradient norm", "before clipping", [Curve("gradient norm", "grad_norm")]),
        Panel("Speed", f"{unit}s a second", [Curve("speed", "tokens_per_second")], False, "count"),
    ]  # fmt: skip
    known = fields.keys() | ({MEAN} if has_training else set())
    kept = [p._replace(curves=[c for c in p.curves if c.field in known]) for p in found]
    return [panel for panel in kept if panel.curves]


def drawn_alone(run: Recorded) -> list[dict[str, Any]]:
    """The panels of one run: titles, and the points of each curve."""
    return [
        _drawn(panel, [(curve, run, 0) for curve in panel.curves], BUCKETS)
        for panel in panels_of(run)
    ]


def drawn_together(runs: Sequence[Recorded], names: Sequence[str]) -> list[dict[str, Any]]:
    """The panels of several runs: a panel for every curve, in which each run has a line."""
    buckets, panels = max(FEWEST, 2 * BUCKETS // (1 + len(runs))), {}
    for run in runs:
        for panel in panels_of(run):
            for curve in panel.curves:
                if curve.looks != FAINT:
                    alone = len(panel.curves) == 1
                    title = panel.title if alone else f"{panel.title}: {curve.label}"
                    panels.setdefault((title, panel.unit), (panel._replace(title=title), curve))
    order = sorted(panels.values(), key=lambda pair: not pair[0].is_wide)
    return [
        _drawn(
            panel, [(curve._replace(label=names[i]), r, i) for i, r in enumerate(runs)], buckets
        )
        for panel, curve in order
    ]  # fmt: skip


def _drawn(
    panel: Panel, curves: Sequence[tuple[Curve, Recorded, int]], buckets: int
) -> dict[str, Any]:
    lines = []
    for curve, run, index in curves:
        field = "train_loss" if curve.field == MEAN else curve.field
        rows = [row for row in run.rows if field in row]
        steps, values = [row["step"] for row in rows], [row[field] for row in rows]
        if curve.field == MEAN:
            values = smoothed(values)
        steps, values = thinned(steps, values, buckets)
        lines.append(
            {"label": curve.label, "looks": curve.looks, "run": index, "x": steps,
             "y": [float(f"{value:.{DIGITS}g}") for value in values]}
        )  # fmt: skip
    return {
        "title": panel.title, "unit": panel.unit, "wide": panel.is_wide, "format": panel.format,
        "lines": lines,
    }  # fmt: skip


def thinned(
    steps: Sequence[int], values: Sequence[float], buckets: int
) -> tuple[list[int], list[float]]:
    """The first point, the last, and the lowest and the highest of each of so many stretches.

    >>> thinned([1, 2, 3, 4, 5, 6, 7, 8], [5, 9, 5, 5, 5, 5, 1, 5], 1)
    ([1, 2, 7, 8], [5, 9, 1, 5])
    """
    count = len(values)
    if count <= 2 * buckets + 2:
        return list(steps), list(values)
    kept = {0, count - 1}
    for k in range(buckets):
        begin = k * count // buckets
        part = values[begin : (k + 1) * count // buckets]
        kept |= {begin + part.index(min(part)), begin + part.index(max(part))}
    order = sorted(kept)
    return [steps[i] for i in order], [values[i] for i in order]


def tokens_by_step(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Steps, and the tokens up to each: the corners of a line, of which even batches need two."""
    sums = list(accumulate((row.get("tokens", 0) for row in rows), initial=0))
    steps = [rows[0]["step"] - 1 if rows else 0, *(row["step"] for row in rows)]
    last = len(rows)
    places = sorted({k * last // KNOTS for k in range(KNOTS + 1)})
    if last and all(sums[i] * last == sums[last] * i for i in places):
        places = [0, last]
    return [steps[i] for i in places], [sums[i] for i in places]


def few(steps: Sequence[int]) -> list[int]:
    """Steps to be marked, at most `MOST_MARKS` of them, spread evenly."""
    stride = -(-len(steps) // MOST_MARKS) or 1
    return list(steps[::stride])

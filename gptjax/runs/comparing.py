"""Several runs side by side: a table, their seeds, what their configs differ in, and their curves.

Runs that differ in nothing but their seed and in places are one experiment, repeated.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gptjax.base.errors import ConfigError, UserError
from gptjax.runs.accounts import goodput
from gptjax.runs.page import clock, count, curves_of, section, table, write_page
from gptjax.runs.recorded import Recorded, read_run
from gptjax.runs.report import Privacy
from gptjax.runs.run_page import CURVES, flat
from gptjax.runs.thinning import drawn_together

SEED = "train.seed"
PLACES = (
    "data.path", "data.source", "data.inputs", "data.examples", "data.val_examples",
    "data.test_examples", "train.checkpoint_dir",
)  # fmt: skip
HEADER = ("run", "seed", "steps", "best loss", "at step", "last loss", "training loss")
HEADER += ("tokens", "a second", "time", "goodput")
SEEDS_HEADER = ("runs", "n", "seeds", "steps", "best loss", "deviation", "last loss", "deviation")
Cells = tuple[str, ...]


class SideBySide(NamedTuple):
    """Several runs, each with the name that it has among them."""

    runs: list[Recorded]
    names: list[str]

    def table(self) -> list[Cells]:
        """A row of figures for each run, under `HEADER`; what was not measured is empty."""
        return [_figures(*pair) for pair in zip(self.runs, self.names, strict=True)]

    def seeds(self) -> list[Cells]:
        """A row for each experiment that was repeated, under `SEEDS_HEADER`."""
        groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for i, run in enumerate(self.runs):
            kept = {k: v for k, v in flat(run.config).items() if k not in (SEED, *PLACES)}
            groups.setdefault(tuple(kept.items()), []).append(i)
        return [self._repeated(group) for group in groups.values() if len(group) > 1]

    def _repeated(self, group: list[int]) -> Cells:
        runs = [self.runs[i] for i in group]
        best = [run.best["val_loss"] for run in runs if run.best is not None]
        last = [run.validated[-1]["val_loss"] for run in runs if run.validated]
        seeds = ", ".join(str(run.config.train.seed) for run in runs)
        ends = [run.step for run in runs]
        names = ", ".join(self.names[i] for i in group)
        steps = " to ".join(f"{n:,}" for n in sorted({min(ends), max(ends)}))
        return (names, str(len(group)), seeds, steps, *_mean(best), *_mean(last))

    def differences(self) -> list[Cells]:
        """The fields whose values differ, each with its value in every run."""
        configs, hide = [flat(run.config) for run in self.runs], Privacy.of_this_process()
        return [
            (name, *(hide(config[name]) for config in configs))
            for name in configs[0]
            if len({config[name] for config in configs}) > 1
        ]

    def write(self, path: Path) -> None:
        """Write the page."""
        together = f"{len(self.runs)} runs" if len(self.runs) > 1 else "1 run"
        sections = [
            section("Runs", table(*filled(HEADER, self.table()))),
            section(
                "Seeds", table(*filled(SEEDS_HEADER, self.seeds())),
                note="Runs that differ only in their seed: mean and sample standard deviation.",
            ),
            section("Curves", CURVES),
            section(
                "Settings that differ",
                table(("setting", *self.names), self.differences(), numbers=False),
            ),
        ]  # fmt: skip
        curves = curves_of(self.runs, self.names, drawn_together(self.runs, self.names))
        lead = ", ".join(self.names[:6]) + ", ..." * (len(self.names) > 6)
        write_page(path, together, lead, sections, {**curves, "together": True})


def read_side_by_side(paths: Sequence[str]) -> SideBySide:
    """Read runs; raises one `ConfigError` that names every path that is no run.

    A run needs no checkpoint, but its config and a row.
    """
    runs, problems = [], []
    for path in dict.fromkeys(paths):
        try:
            runs.append(read_run(Path(path)))
            if not runs[-1].rows:
                problems.append(f"{path} has no step yet: expected rows in metrics.jsonl")
        except UserError as error:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
    if problems:
        raise ConfigError(problems)
    return SideBySide(runs, list(_names(runs)))


def _names(runs: Sequence[Recorded]) -> Iterator[str]:
    """The name of each directory, with those above it as far as runs have the same one."""
    paths = [run.directory.path.absolute().parts for run in runs]
    for own in paths:
        others = [path for path in paths if path != own]
        depth = 1
        while any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        yield "/".join(own[-depth:])


def _figures(run: Recorded, name: str) -> Cells:
    best, last = run.best, run.validated[-1] if run.validated else None
    trained = run.training_loss
    seconds = run.seconds
    return (
        name,
        str(run.config.train.seed),
        f"{run.step:,}",
        "" if best is None else f"{best['val_loss']:.4f}",
        "" if best is None else f"{best['step']:,}",
        "" if last is None else f"{last['val_loss']:.4f}",
        "" if trained is None else f"{trained:.4f}",
        count(run.tokens),
        "" if run.rate is None else f"{run.rate:,.0f}",
        clock(sum(seconds.values())) if run.starts else "",
        f"{goodput(seconds):.1%}" if run.starts else "",
    )


def _mean(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}", spread


def filled(header: Cells, rows: Sequence[Cells]) -> tuple[Cells, list[Cells]]:
    """A table without the columns in which no row has a value."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    first, *rest = [tuple(row[i] for i in kept) for row in (header, *rows)]
    return first, rest


def as_text(header: Cells, rows: Sequence[Cells]) -> str:
    """A table for a terminal, without empty columns.

    >>> print(as_text(("run", "loss", "time"), [("a", "3.1", ""), ("long", "2.95", "")]))
    run   loss
    a      3.1
    long  2.95
    """
    header, rows = filled(header, rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for line in (header, *rows):
        cells = zip(line[1:], widths[1:], strict=True)
        first = line[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in cells)]))
    return "\n".join(lines)

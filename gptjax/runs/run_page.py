"""report.html of one run: figures, curves, hours, samples, starts, config and files."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptjax.config import Config
from gptjax.config.names import TESTS
from gptjax.runs.page import (
    clock,
    count,
    curves_of,
    folded,
    links,
    section,
    table,
    text_block,
    tiles,
    write_page,
)
from gptjax.runs.recorded import Recorded
from gptjax.runs.report import Privacy
from gptjax.runs.thinning import drawn_alone

REPORT = "report.html"
MOST_SAMPLES = 12
LONGEST_SAMPLE = 6000  # characters
CURVES = '<div id="curves"></div>'
Hide = Callable[[str], str]


def write_run_page(run: Recorded, environment: Sequence[str]) -> None:
    """Write report.html into the directory of a run; `environment` are lines to show in it."""
    hide = Privacy.of_this_process()
    step, last = run.step, run.config.train.max_steps
    lead = f"{step:,} of {last:,} steps"
    starts: list[int] = []
    sections = [
        tiles(figures_of(run)),
        section("Curves", CURVES),
        section("Results", _results(run)),
        section("Samples", *_samples(run)),
        section("Config", *config_parts(run.config, hide)),
        section("Environment", *_environment(run, environment, hide)),
        section("Files", links(_files(run))),
    ]
    curves = curves_of([run], drawn_alone(run), [starts])
    write_page(run.directory.path / REPORT, run.name, lead, sections, curves)


def figures_of(run: Recorded) -> Iterator[tuple[str, str, str]]:
    """The figures that matter, each with its name and a few words."""
    best, last = run.best, run.validated[-1] if run.validated else None
    if best is not None and last is not None:
        yield "Best validation loss", f"{best['val_loss']:.4f}", _at(best, run)
        if best is not last:
            yield "Last validation loss", f"{last['val_loss']:.4f}", _at(last, run)
        for field, name, form in (
            ("val_accuracy", "Accuracy", ".1%"),
            ("val_macro_f1", "Macro F1", ".3f"),
            ("val_bits_per_byte", "Bits per byte", ".4f"),
        ):
            if field in best:
                yield name, f"{best[field]:{form}}", f"step {best['step']:,}"
    trained = [row["train_loss"] for row in run.rows if "train_loss" in row]
    if trained:
        tail = trained[-max(1, len(trained) // 50) :]
        words = f"mean of the last {len(tail):,} steps" if len(tail) > 1 else "last step"
        yield "Training loss", f"{sum(tail) / len(tail):.4f}", words
    for field, row in _newest_tests(run).items():
        yield field.replace("/", " ").replace("_", " "), f"{row[field]:.4f}", f"step {row['step']:,}"
    if run.tokens:
        yield f"{run.unit.capitalize()}s", count(run.tokens), f"{run.step:,} steps"
    if (rate := run.rate) is not None:
        used = [row["mfu"] for row in run.rows if "mfu" in row]
        words = f"{sum(used) / len(used):.1%} MFU" if used else "while training"
        yield f"{run.unit.capitalize()}s a second", f"{rate:,.0f}", words
    if run.skipped:
        yield "Skipped steps", f"{len(run.skipped):,}", f"the last was {run.skipped[-1]:,}"


def _at(row: dict[str, Any], run: Recorded) -> str:
    error = f"± {row['val_stderr']:.4f}, " if row.get("val_stderr") else ""
    newest = ", the newest" if row is run.validated[-1] and len(run.validated) > 1 else ""
    return f"{error}step {row['step']:,}{newest}"


def _newest_tests(run: Recorded) -> dict[str, dict[str, Any]]:
    """The last row with each main figure of the published tests."""
    main = ("acc", "acc_norm", "perplexity", "word_perplexity")
    return {
        field: row
        for row in run.rows
        for field in row
        if field.split("/")[0] in TESTS and field.split("/", 1)[1] in main
    }


def _results(run: Recorded) -> str:
    """The single figures in results.json."""
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.4f}")
        for name, value in run.results().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return table(("figure", "value"), rows)


def _samples(run: Recorded) -> Iterator[str]:
    """Samples from the first to the last, spread evenly; the newest is open, and comes first."""
    found = run.samples()
    among = max(1, min(MOST_SAMPLES, len(found)) - 1)
    chosen = sorted({k * (len(found) - 1) // among for k in range(among + 1)}) if found else []
    for i in reversed(chosen):
        step, text = found[i]
        yield folded(f"step {step:,}", text_block(text[:LONGEST_SAMPLE]), i == len(found) - 1)


def config_parts(config: Config, hide: Hide) -> Iterator[str]:
    """What differs from the defaults as a table, and every section folded."""
    default = Config()
    changed: list[tuple[str, str, str]] = []
    parts: list[str] = []
    for part in dataclasses.fields(config):
        value, usual = getattr(config, part.name), getattr(default, part.name)
        if not dataclasses.is_dataclass(value):
            changed += [(part.name, hide(str(value)), str(usual))] if value != usual else []
            continue
        rows = [
            (f"{part.name}.{f.name}", _words(getattr(value, f.name)), _words(getattr(usual, f.name)))
            for f in dataclasses.fields(value)
        ]
        rows = [(name, hide(now), hide(before)) for name, now, before in rows]
        changed += [row for row in rows if row[1] != row[2]]
        content = table(("field", "value"), [row[:2] for row in rows], numbers=False)
        parts.append(folded(part.name, content))
    header = ("differs from the default", "value", "default")
    yield table(header, changed, numbers=False)
    yield f"<div class='folds'>{''.join(parts)}</div>"


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _environment(run: Recorded, lines: Sequence[str], hide: Hide) -> Iterator[str]:
    said = [(name, hide(words)) for name, words in run.said().items()]
    yield table(("at the last start", ""), said, numbers=False)
    yield text_block("\n".join(lines)) if lines else ""


def _files(run: Recorded) -> list[str]:
    """Files of the run that people read."""
    names = (
        "metrics.jsonl", "log.txt", "samples.md", "loss.png", "confusion.png", "results.json",
        "responses.md", "config.json", "tokenizer.json",
    )  # fmt: skip
    return [name for name in names if (run.directory.path / name).is_file()]

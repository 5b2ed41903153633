"""report.html of one run: figures, curves, hours, samples, starts, config and files."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from typing import Any

from gptjax.cluster.phases import Phase
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.config.names import TESTS
from gptjax.runs.accounts import BETWEEN, LOST, SPENT_ON, goodput, spent, to_go
from gptjax.runs.page import (
    bar,
    clock,
    count,
    curves_of,
    folded,
    links,
    pairs,
    section,
    table,
    text_block,
    tiles,
    write_page,
)
from gptjax.runs.recorded import Recorded
from gptjax.runs.report import Privacy
from gptjax.runs.thinning import drawn_alone

MOST_SAMPLES = 12
LONGEST_SAMPLE = 6000  # characters
CURVES = "<div id='plots'></div>"
LOOKS = {Phase.TRAINING.value: "c2", LOST: "c1", BETWEEN: "c10"}
FURTHER = ("c7", "c8", "c9", "c5", "c3", "c4", "c6", "c0")  # of the other kinds of seconds
ELSEWHERE = ("step", "trained_steps", "val_loss", "goodput", "spent")  # figures of results.json
Hide = Callable[[str], str]


def write_run_page(run: Recorded) -> None:
    """Write report.html into the directory of a run."""
    hide = Privacy.of_this_process()
    step, last = run.step, run.config.train.max_steps
    lead = f"{step:,} of {last:,} steps"
    sections = [
        tiles(figures_of(run)),
        section("Curves", CURVES),
        section("Results", _results(run)),
        section("Hours", _hours(run.seconds), note=_goodput(run)),
        section("Samples", *_samples(run)),
        section("Starts", _starts(run)),
        section("Config", *config_parts(run.config, hide), note="what differs from the defaults"),
        section("Environment", _environment(run, hide)),
        section("Files", links(_files(run))),
    ]
    curves = curves_of([run], [run.name], drawn_alone(run))
    write_page(run.directory.report, run.name, lead, sections, curves)


def figures_of(run: Recorded) -> Iterator[tuple[str, str, str]]:
    """The figures that matter, each with its name and a few words."""
    best, last = run.best, run.validated[-1] if run.validated else None
    if best is not None and last is not None:
        yield "Best validation loss", f"{best['val_loss']:.4f}", _at(best)
        if best is not last:
            yield "Last validation loss", f"{last['val_loss']:.4f}", _at(last)
        for field, name, form in (
            ("val_accuracy", "Accuracy", ".1%"),
            ("val_macro_f1", "Macro F1", ".3f"),
            ("val_bits_per_byte", "Bits per byte", ".4f"),
        ):
            if field in best:
                yield name, f"{best[field]:{form}}", f"step {best['step']:,}"
    if (trained := run.training_loss) is not None:
        yield "Training loss", f"{trained:.4f}", "mean of the last 2%"
    for field, row in _newest_tests(run).items():
        yield (
            field.replace("/", " ").replace("_", " "),
            f"{row[field]:.4f}",
            f"step {row['step']:,}",
        )
    if run.tokens:
        yield f"{run.unit.capitalize()}s", count(run.tokens), f"{run.step:,} steps"
    if (rate := run.rate) is not None:
        used = [row["mfu"] for row in run.rows if "mfu" in row]
        words = f"{sum(used) / len(used):.1%} MFU" if used else "while training"
        yield f"{run.unit.capitalize()}s a second", f"{rate:,.0f}", words
    if run.starts:
        seconds = run.seconds
        yield "Goodput", f"{goodput(seconds):.1%}", f"of {clock(sum(seconds.values()))}"
    if run.skipped:
        yield "Skipped steps", f"{len(run.skipped):,}", f"the last was {run.skipped[-1]:,}"


def _at(row: dict[str, Any]) -> str:
    error = f"± {row['val_stderr']:.4f}, " if row.get("val_stderr") else ""
    return f"{error}step {row['step']:,}"


def _newest_tests(run: Recorded) -> dict[str, dict[str, Any]]:
    """The last row with each main figure of the published tests."""
    main = ("acc", "acc_norm", "perplexity", "word_perplexity")
    fields = [f for f in run.fields if f.split("/")[0] in TESTS and f.split("/", 1)[1] in main]
    return {field: next(row for row in reversed(run.rows) if field in row) for field in fields}


def _results(run: Recorded) -> str:
    """The single figures in results.json."""
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.4f}")
        for name, value in run.directory.read_results().items()
        if name not in ELSEWHERE and isinstance(value, int | float) and not isinstance(value, bool)
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
    """What differs from the defaults, and everything folded."""
    default = flat(Config())
    given = {name: hide(value) for name, value in flat(config).items()}
    yield pairs(
        (name, value, f"default {default[name]}")
        for name, value in given.items()
        if value != default[name]
    )
    yield folded("all settings", pairs((name, value, "") for name, value in given.items()))


def flat(config: Config) -> dict[str, str]:
    """Every field under its dotted name, in words."""
    found: dict[str, str] = {}
    for name, value in dataclasses.asdict(config).items():
        parts = value.items() if isinstance(value, dict) else ()
        found |= {f"{name}.{field}": _words(x) for field, x in parts} or {name: _words(value)}
    return found


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _goodput(run: Recorded) -> str:
    """The share of the time that trained, and the price, in words."""
    if not run.starts:
        return ""
    starts, seconds = run.starts, run.seconds
    words = (
        f"Goodput {goodput(seconds):.1%}: the share of {clock(sum(seconds.values()))} in "
        f"{len(starts):,} start{'s' * (len(starts) > 1)} that trained steps, and kept them."
    )
    price = next((start.price for start in reversed(starts) if start.price is not None), None)
    if price is None:
        return words
    work, end = batch_schedule(run.config).rows_before, run.config.train.max_steps
    left = to_go(starts, price, work, end)
    words += f" Price so far {spent(starts, price):,.2f}"
    words += f", about {left:,.2f} to go" if left > 0 else ""
    return f"{words} ({price:g} per GPU and hour)."


def _hours(seconds: Mapping[str, float]) -> str:
    """The seconds of all starts by kind, training first."""
    total = sum(seconds.values()) or 1.0
    others = [kind for kind in SPENT_ON if kind not in LOOKS]
    looks = LOOKS | dict(zip(others, cycle(FURTHER), strict=False))
    parts = [
        (looks[kind], kind.replace("_", " "), seconds[kind] / total, clock(seconds[kind]))
        for kind in SPENT_ON
    ]
    return bar(sorted(parts, key=lambda part: part[1] != Phase.TRAINING))


def _starts(run: Recorded) -> str:
    """A table of the starts; the last one may be alive, as it writes this page."""
    starts, rows = run.starts, []
    alive = "complete" if run.step >= run.config.train.max_steps else "still running"
    for number, start in enumerate(starts, 1):
        steps = "none" if start.to_step is None else f"{start.from_step:,} to {start.to_step:,}"
        how = alive if number == len(starts) else "killed"
        rows.append((
            str(number), time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start.began)), steps,
            clock(start.life), clock(start.gap) if start.gap else "", clock(start.lost)
            if start.lost >= 0.05 else "", f"{start.devices} x {start.device}",
            how if start.exit is None else exit_in_words(start.exit),
        ))  # fmt: skip
    header = ("start", "began (UTC)", "steps", "lived", "idle before", "lost", "devices", "end")
    return table(header, rows)


def exit_in_words(code: int) -> str:
    """What an exit code says.

    >>> exit_in_words(0), exit_in_words(143), exit_in_words(75)
    ('complete', 'SIGTERM', 'exit code 75')
    """
    if code == 0:
        return "complete"
    known = {128 + number: number.name for number in signal.Signals}
    return known.get(code, f"exit code {code}")


def _environment(run: Recorded, hide: Hide) -> str:
    """The lines of the last start, and its versions."""
    said = [(name, hide(words)) for name, words in run.said().items()]
    if run.starts:
        versions = ", ".join(f"{name} {number}" for name, number in run.starts[-1].versions.items())
        said.append(("versions", hide(versions)))
    return table(("at the last start", ""), said, numbers=False)


def _files(run: Recorded) -> list[str]:
    """Files of the run that people read."""
    names = (
        "metrics.jsonl", "log.txt", "samples.md", "loss.png", "confusion.png", "results.json",
        "responses.md", "config.json", "tokenizer.json",
    )  # fmt: skip
    return [name for name in names if (run.directory.path / name).is_file()]

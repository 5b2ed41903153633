"""The frame of every measurement: workers, turns, medians, one table and one JSON file each.

Sides take turns, round by round, so a machine that changes speed changes it for all. Each side has
its own process: its allocator options, thread pools and imports cannot help or hurt another side,
and if it crashes, no other side ends. Only one side computes at a time. This module knows neither
jax nor torch.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
SECONDS_TO_END = 5
LOAD_AT_START = os.getloadavg()[0]  # of the last minute, before anything here computed

Figures = dict[str, float]  # of one round: `seconds` and whatever else the side measured
Round = Callable[[], Figures]
Targets = Mapping[str, tuple[str, Mapping[str, Any]]]  # side to function and its keywords


class Skipped(Exception):
    """A measurement that is impossible here; the message is the reason."""


@dataclass(frozen=True)
class Plan:
    """The thoroughness, the places of scratch files and figures, the data, the other checkout."""

    quick: bool
    scratch: Path
    out: Path | None = None
    text: Path | None = None
    against: Path | None = None
    instructions: Path | None = None
    labelled: Path | None = None

    def rounds(self, usual: int) -> int:
        """`usual`, or the fewest that have a median."""
        return 2 if self.quick else usual


class Worker:
    """A side in its own process, built once; calling it does one round.

    `target` is `module.function` of this directory, called with the keywords in `arguments`, which
    must be JSON; it returns a `Round` and a dict of facts. Raises `Skipped` if the side does so,
    `RuntimeError` with its last words if it dies.
    """

    def __init__(self, target: str, **arguments: Any):
        self.target = target
        # a pipe that nobody reads would fill up
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(BENCH / "worker.py"), target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # sides live side by side: none may take a GPU's memory before it needs it
            env=plain_environment() | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:  # its time may be up
            self.close()
            raise

    def __call__(self) -> Figures:
        """Do one round and return its figures."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which the answer tells
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().strip()[-2000:]
            raise RuntimeError(f"{self.target} died with {self._process.returncode}: {words}")
        answer = json.loads(line)
        if "skipped" in answer:
            raise Skipped(answer["skipped"])
        return answer

    def close(self) -> None:
        """End the process, by force if necessary."""
        try:
            self._process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def plain_environment(root: Path = ROOT) -> dict[str, str]:
    """This process's environment with a checkout's package importable, as in a user's shell."""
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def cores() -> int:
    """Number of cores that this process may use; all sides are told to use as many."""
    return len(os.sched_getaffinity(0))


def in_turns(sides: Mapping[str, Round], rounds: int) -> dict[str, list[Figures]]:
    """`rounds` rounds of every side, one after the other; even rounds in reverse order."""
    results: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(sides[name]())
    return results


def compare(
    targets: Targets, rounds: int, report: "Report", may_die: bool = False
) -> tuple[dict[str, list[Figures]], dict[str, dict[str, Any]]]:
    """Start a worker per side, take turns, end them: every round's figures, every side's facts.

    A side that cannot run here is left out, and the report says why. So is a side that dies while
    it is built, if it `may_die`: a variant may need more memory than there is.
    """
    workers: dict[str, Worker] = {}
    try:
        for name, (target, arguments) in targets.items():
            try:
                workers[name] = Worker(target, **arguments)
            except Skipped as reason:
                report.skip(name, str(reason))
            except RuntimeError as error:
                if not may_die:
                    raise
                report.skip(name, str(error)[-300:])
        return in_turns(workers, rounds), {name: w.facts for name, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a quantity over rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return Spread(statistics.median(values), min(values), max(values))

    def text(self, pattern: str = "{:,.3g}") -> str:
        """Median (lowest to highest), each formatted by `pattern`."""
        middle, low, high = (pattern.format(v) for v in (self.median, self.low, self.high))
        return f"{middle} ({low} to {high})"


def column(rounds: Sequence[Figures], name: str = "seconds") -> list[float]:
    """One quantity of every round."""
    return [figures[name] for figures in rounds]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios within each round, then their spread: drift between rounds cancels."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


@dataclass
class Report:
    """A table for people and the figures behind it for machines."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    ratio: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def skip(self, what: str, reason: str) -> None:
        """Record that a part could not be measured."""
        self.note(f"{what} skipped: {reason}")

    def note(self, text: str) -> None:
        """Say something below the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def row(
        self, name: str, measured: Mapping[str, Sequence[Figures]], amount: float, pattern: str
    ) -> None:
        """Add a case: `amount` per second of every side, and the ratio of the first to each other.

        Columns are the case, the sides by name, and a ratio for each side but the first.
        """
        first, *others = sides = self.columns[1 : 1 + len(self.columns) // 2]
        rates = {side: [amount / s for s in column(r)] for side, r in measured.items()}
        over = {n: ratios(rates[first], rates[n]) for n in others if {first, n} <= set(rates)}
        shown = [Spread.of(rates[side]).text(pattern) if side in rates else "-" for side in sides]
        shown += [over[side].text("{:.2f}") if side in over else "-" for side in others]
        self.rows.append((name, *shown))
        self.figures[name], self.ratio[name] = {"a_second": rates}, over

    def publish(self, out: Path | None) -> None:
        """Print the table; write `out/NAME.json` if there is a directory to write to."""
        if cores() / 4 < LOAD_AT_START:
            self.note(f"the machine was busy when this began: load {LOAD_AT_START:.1f}")
        table = Table(title=self.title, title_justify="left", caption="\n".join(self.notes))
        for heading in self.columns:
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(table)
        if out is not None:
            content = {
                "name": self.name,
                "title": self.title,
                "command": _command(),
                "columns": self.columns,
                "rows": self.rows,
                "figures": self.figures,
                "ratio": self.ratio,
                "notes": self.notes,
                "machine": machine(),
            }
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{self.name}.json").write_text(
                json.dumps(content, indent=1, default=asdict) + "\n"
            )


def _command() -> str:
    """The command line, relative to the root of the repository, whose place is private."""
    program, *words = sys.argv
    path = Path(program).resolve()
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return " ".join(["python", str(name), *words])


def machine() -> dict[str, Any]:
    """The machine and the versions on which the figures were measured."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": installed("jax"),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "load_at_start": LOAD_AT_START,
        "date": time.strftime("%Y-%m-%d"),
    }


def installed(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

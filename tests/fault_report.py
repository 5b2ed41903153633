"""What the tests of faults report: one table at the end of a session.

A test calls the fixture `report` for every kind of fault that it tried. Workers of xdist send the
rows to the process that prints them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "fault"
Report = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", type=int, default=0, metavar="N", help="kill runs N times in tests/faults"
    )


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> int:
    """The number that follows --soak; skips without one."""
    if not (times := request.config.getoption("--soak")):
        pytest.skip("a long trial: --soak N runs it with N kills")
    return times


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """A function that adds a fault to the table.

    `lost` are the steps that were done and are not in a completed save, where it was counted.
    """

    def add(
        fault: str, tried: int = 1, survived: int = 1, lost: int | None = 0, note: str = ""
    ) -> None:
        request.node.user_properties.append((PROPERTY, [fault, tried, survived, lost, note]))

    return add


@pytest.fixture(scope="session")
def unbroken_here(prepared: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run of `faulty_runs` that nothing happens to."""
    from faulty_runs import train_here  # with jax

    directory = tmp_path_factory.mktemp("unbroken")
    assert train_here(prepared, directory) == 0
    return directory


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found: dict[str, list] = {}
    for outcome in ("passed", "failed"):
        for test in terminalreporter.stats.get(outcome, []):
            if getattr(test, "when", None) != "call":
                continue
            rows = [value for name, value in test.user_properties if name == PROPERTY]
            if outcome == "failed" and "tests/faults/" in test.nodeid:
                rows = [[test.nodeid.split("::")[-1], 1, 0, None, "FAILED"]]
            for fault, tried, survived, lost, note in rows:
                row = found.setdefault(fault, [0, 0, None, []])
                row[0] += tried
                row[1] += survived
                row[2] = row[2] if lost is None else (row[2] or 0) + lost
                row[3] += [note] if note and note not in row[3] else []
    if not found:
        return
    width = max(map(len, found))
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'fault':<{width}}  tried  survived  steps lost")
    for fault, (tried, survived, lost, notes) in sorted(found.items()):
        shown = "-" if lost is None else lost
        line = f"{fault:<{width}}  {tried:>5}  {survived:>8}  {shown:>10}  {'; '.join(notes)}"
        terminalreporter.write_line(line.rstrip())
    tried, survived, lost = (sum(row[i] or 0 for row in found.values()) for i in range(3))
    terminalreporter.write_line(f"{'all':<{width}}  {tried:>5}  {survived:>8}  {lost:>10}")

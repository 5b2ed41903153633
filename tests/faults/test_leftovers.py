"""A run goes on from whatever a crash, a disk or a hand has left in its directory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_runs import crashed, train_here
from killed_runs import assert_same_run, checkpoints

pytestmark = pytest.mark.slow
CRASHED = 14


@pytest.fixture(scope="module")
def stopped(prepared, tmp_path_factory) -> Path:
    """A run that crashed after step 14; its newest checkpoint is that of step 12."""
    return crashed(prepared, tmp_path_factory.mktemp("stopped"), CRASHED)


def damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def tear_metrics(run: Path) -> None:
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text[:-9])


def fill_metrics_with_zeros(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(bytes(700))


def leave_unfinished_steps(run: Path) -> None:
    for name in ("15.orbax-checkpoint-tmp", "16.orbax-checkpoint-tmp.orbax-checkpoint-tmp-3"):
        shutil.copytree(run / "checkpoints" / "12", run / "checkpoints" / name)


def leave_temporary_files(run: Path) -> None:
    for name in (".config.json.0123456789abcdef.tmp", ".metrics.jsonl.0123456789abcdef.tmp"):
        (run / name).write_bytes(b"{")


def forget_what_is_shown(run: Path) -> None:
    for name in ("log.txt", "loss.png"):
        (run / name).unlink(missing_ok=True)


LEFT: dict[str, Callable[[Path], object]] = {
    "last line of metrics.jsonl torn": tear_metrics,
    "ranking.json damaged": lambda run: damage(run / "ranking.json", b'{"8": {"val_lo'),
    "stale .lock": lambda run: damage(run / ".lock", b"4711"),
    "zeros at the end of metrics.jsonl": fill_metrics_with_zeros,
    "ranking.json missing": lambda run: (run / "ranking.json").unlink(missing_ok=True),
    "unfinished steps": leave_unfinished_steps,
    "ranking.json of another form": lambda run: damage(run / "ranking.json", b"[1, 2]"),
    "temporary files": leave_temporary_files,
    "log and curves deleted": forget_what_is_shown,
}


@pytest.mark.parametrize("first", [0, 3, 6])
def test_what_lies_in_the_directory_changes_nothing(
    prepared, tmp_path, unbroken_here, stopped, report, first
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert max(checkpoints(tmp_path)) == 12
    names = list(LEFT)[first : first + 3]
    for name in names:
        LEFT[name](tmp_path / "run")
    assert train_here(prepared, tmp_path) == 0
    assert_same_run(tmp_path, unbroken_here)
    steps = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert all(step.isdigit() for step in steps)
    for name in names:
        report(name)

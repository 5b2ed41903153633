"""A run goes on from whatever a crash, a disk or a hand has left in its directory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_runs import assert_same_run, checkpoints
from runs_here import crashed, train_here

pytestmark = pytest.mark.slow
CRASHED = 14


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken")
    assert train_here(prepared, directory) == 0
    return directory


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
    "zeros at the end of metrics.jsonl": fill_metrics_with_zeros,
    "ranking.json damaged": lambda run: damage(run / "ranking.json", b'{"8": {"val_lo'),
    "ranking.json of another form": lambda run: damage(run / "ranking.json", b"[1, 2]"),
    "ranking.json missing": lambda run: (run / "ranking.json").unlink(missing_ok=True),
    "stale .lock": lambda run: damage(run / ".lock", b"4711"),
    "unfinished steps": leave_unfinished_steps,
    "temporary files": leave_temporary_files,
    "log and curves deleted": forget_what_is_shown,
}


@pytest.mark.parametrize("what", LEFT)
def test_what_lies_in_the_directory_changes_nothing(
    prepared, tmp_path, unbroken, stopped, report, what
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert max(checkpoints(tmp_path)) == 12
    LEFT[what](tmp_path / "run")
    assert train_here(prepared, tmp_path) == 0
    assert_same_run(tmp_path, unbroken)
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names)
    report(what)


def test_the_best_is_known_again_without_ranking_json(prepared, tmp_path, unbroken, stopped):
    """Its figures are gone with the file, so a step that was the best may be deleted; no later."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "ranking.json").write_bytes(b"\0" * 50)
    assert train_here(prepared, tmp_path) == 0
    newest = (tmp_path / "run" / "ranking.json").read_text()
    assert '"24"' in newest

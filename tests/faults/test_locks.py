"""Two processes in one directory: one works and the other is told so, whatever the moment."""

import os
import threading
from pathlib import Path

import pytest
from killed_runs import assert_same_run, ended, start, trained, wait_until, written

from gptjax.base import files
from gptjax.base.files import locked


def test_a_lock_that_is_opened_before_it_is_unlinked_keeps_nobody_in(tmp_path, monkeypatch, report):
    """B opens the file, A ends and unlinks it, B locks what is unlinked, C makes a new file.

    B's call of flock waits until A and C have done that.
    """
    path, flock = tmp_path / "lock", files.fcntl.flock
    has_opened, may_lock = threading.Event(), threading.Event()
    inside: list[str] = []

    def late(file, how):
        if threading.current_thread().name == "B" and not has_opened.is_set():
            has_opened.set()
            may_lock.wait(10)
        return flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    go_home = threading.Event()

    def work(name: str) -> None:
        with locked(path) as is_free:
            if is_free:
                inside.append(name)
                go_home.wait(10)

    with locked(path) as is_free:
        assert is_free
        b = threading.Thread(target=work, args="B", name="B")
        b.start()
        assert has_opened.wait(10)
        path.unlink()
    c = threading.Thread(target=work, args="C", name="C")
    c.start()
    while not inside:
        os.sched_yield()
    may_lock.set()
    b.join(10)  # it looks for the file that is there now, and finds it locked
    assert inside == ["C"]
    go_home.set()
    c.join(10)
    report("lock opened before it is unlinked")


def test_a_lock_that_is_unlinked_is_taken_anew(tmp_path, monkeypatch):
    """The same without C: B then holds the file that others find."""
    path, flock, calls = tmp_path / "lock", files.fcntl.flock, []

    def unlinking(file, how):
        calls.append(file)
        if len(calls) == 1:
            path.unlink()
        return flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", unlinking)
    with locked(path) as is_free, locked(path) as again:
        assert (is_free, again) == (True, False)
    assert len(calls) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_two_runs_in_one_directory(prepared, tmp_path, report):
    """The second leaves, and the first ends as if it had been alone."""
    args = ["--config", "tiny", "--run-dir", "run", "--data.path", str(prepared.directory)]
    args += ["--model.unroll", "1", "--train.max-steps", "60", "--train.save-every-steps", "10"]
    for name in ("both", "alone"):
        (tmp_path / name).mkdir()
    first = start(args, tmp_path / "both")
    wait_until(lambda: (tmp_path / "both" / "run" / ".lock").exists(), first)
    others = [start(args, tmp_path / "both") for _ in range(2)]
    for other in others:
        code, said = ended(other)
        assert code in (0, 1)  # 0 if it came when the first had ended
        assert "another process is training" in said or "is complete" in said
        assert "Traceback" not in said
    code, said = ended(first)
    assert code == 0, said
    assert written(tmp_path / "both") == 60
    trained(args, tmp_path / "alone")
    assert_same_run(tmp_path / "both", tmp_path / "alone")
    report("two runs in one directory", 2, 2)


def prepare(words: list[str], cwd: Path):
    then = "from gptjax.prepare import prepare\nfrom gptjax.cli import main\nmain(prepare)"
    return start(words, cwd, 1, then)


@pytest.mark.slow
def test_two_preparations_in_one_directory(text_file, tmp_path, report):
    """One is refused, or comes later and finds the data; their bytes are those of one alone."""
    words = ["--input", str(text_file), "--tokenizer", "bytes", "--val-fraction", "0.1", "--out"]
    pair = [prepare([*words, "out"], tmp_path) for _ in range(2)]
    ends = [ended(process) for process in pair]
    assert sorted(code for code, _ in ends) in ([0, 0], [0, 1]), ends
    assert all("Traceback" not in said for _, said in ends)
    assert ended(prepare([*words, "alone"], tmp_path))[0] == 0

    def content(name: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.suffix == ".bin"}

    assert content("out") == content("alone") != {}
    assert not list(tmp_path.glob("*.lock"))
    report("two preparations in one directory")

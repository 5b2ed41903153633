"""Each process signs the bytes that it wrote, and several processes together verify all bytes."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment_on

from gptjax.runs import integrity
from gptjax.runs.digests import DIGESTS
from gptjax.runs.integrity import INTEGRITY, sign, verify
from gptjax.runs.ranking import CURSOR_FILE

SAVER = ROOT / "tests" / "runs" / "two_savers.py"


def together(verb: str, directory: Path, processes: int = 2) -> list[dict[str, Any]]:
    """What each of several processes says of saving, or restoring."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for process in range(processes):
        words = [sys.executable, SAVER, where, processes, process, directory, verb]
        started.append(
            subprocess.Popen(
                [str(word) for word in words],
                env=environment_on(2 // processes),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * processes, told
    return [json.loads(output.splitlines()[-1]) for output, _ in told]


def names(step_dir: Path) -> set[str]:
    return {str(p.relative_to(step_dir)) for p in step_dir.rglob("*") if p.is_file()}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_two_processes_sign_and_verify_each_its_own_files(tmp_path):
    directory = tmp_path / "checkpoints"
    first, second = together("save", directory)
    for step in ("1", "2"):
        assert verify(directory / step) is None
        assert set(json.loads((directory / step / INTEGRITY).read_text())) == names(
            directory / step
        ) - {INTEGRITY}
    assert second["read"]
    assert all("ocdbt.process_1/" in name for name in second["read"])
    assert not any("ocdbt.process_1/" in name for name in first["read"])
    signed = names(directory / "2") - {INTEGRITY}
    assert len(first["read"]) + len(second["read"]) == 2 * len(signed)  # two steps, each file once

    first, second = together("restore", directory)
    assert (first["step"], second["step"], first["said"]) == (2, 2, [])
    assert sorted(first["read"] + second["read"]) == sorted(f"2/{name}" for name in signed)
    assert first["read"]
    assert second["read"]

    for name in (first["read"][0], second["read"][0]):  # damage that only one of them sees
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content + b"x")
        first, second = together("restore", directory)
        assert (first["step"], second["step"], second["said"]) == (1, 1, [])
        assert [name.removeprefix("2/") in text for text in first["said"]] == [True]
        (tmp_path / "damaged" / "2").rename(directory / "2")
        (directory / name).write_bytes(content)

    shutil.copytree(directory / "2", tmp_path / "kept")
    (directory / "2" / INTEGRITY).unlink()
    first, second = together("restore", directory)
    assert (first["step"], second["step"]) == (1, 1)
    assert f"it has no {INTEGRITY}" in first["said"][0]

    (tmp_path / "kept").rename(directory / "2")
    (directory / "2" / INTEGRITY).unlink()
    cursor = directory / "2" / CURSOR_FILE
    content = json.loads(cursor.read_text())
    content[DIGESTS]["params"] ^= 1
    cursor.write_text(json.dumps(content))
    sign(directory / "2")
    first, second = together("restore", directory)
    assert (first["step"], second["step"], second["said"]) == (1, 1, [])
    assert "params is not what was saved" in first["said"][0]

    (alone,) = together("restore", directory, processes=1)
    assert alone["step"] == 1
    assert not list(directory.rglob(f"{INTEGRITY}.*"))


def test_every_file_is_in_the_share_of_one_process(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}").write_bytes(bytes(2**i))
    sign(tmp_path)
    for count in (1, 2, 3, 9):
        assert [verify(tmp_path, i, count) for i in range(count)] == [None] * count
    for name in sorted(names(tmp_path) - {INTEGRITY}):
        content = (tmp_path / name).read_bytes()
        flip_a_bit(tmp_path / name)
        for count in (1, 2, 3, 9):
            problems = [verify(tmp_path, i, count) for i in range(count)]
            assert [p for p in problems if p] == [f"{name} has changed since it was written"]
        (tmp_path / name).write_bytes(content)


def test_a_step_takes_its_name_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    unfinished, final, waited = tmp_path / "5.unfinished", tmp_path / "5", []
    (unfinished / "params").mkdir(parents=True)
    (unfinished / "params" / "array").write_bytes(b"numbers")

    def wait(*places: Path) -> None:
        waited.append((final.exists(), {place.name for place in places}))

    monkeypatch.setattr(integrity, "reach_disk", wait)
    integrity._commit(unfinished, final)
    everything = {"5.unfinished", "params", "array", INTEGRITY}
    assert waited == [(False, everything), (True, {tmp_path.name})]
    assert verify(final) is None

"""The same bytes from any number of workers, from partitions, and after any number of kills."""

import dataclasses
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest
from gptjax.preparation import documents, pool, scanning, units, workspace
from gptjax.preparation.pipeline import prepare_partition, prepare_shards, prepare_with_progress
from gptjax.preparation.sources import Input, find_inputs
from gptjax.preparation.tokenising import UnitTokeniser
from gptjax.preparation.units import Partition, find_units
from gptjax.tokenizers.plain import ByteTokenizer

SHARD = 2000


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Two files of 40 documents together, one of them long, in some 30 units."""
    monkeypatch.setattr(documents, "PART_BYTES", 200)
    monkeypatch.setattr(units, "SMALLEST_UNIT", 600)
    paths = [tmp_path / "a.jsonl", tmp_path / "long.txt"]
    lines = [json.dumps({"text": f"{i} the sea\n" * (i * 13 % 50)}) for i in range(39)]
    paths[0].write_text("\n".join(lines))
    paths[1].write_text("a line of the long one\n" * 300)
    return DataConfig(str(tmp_path / "out"), "bytes", None, tuple(map(str, paths)), 0.25)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def prepared(data: DataConfig, path: Path, **options) -> Manifest:
    data = dataclasses.replace(data, path=str(path))
    return prepare_shards(data, find_inputs(data), shard_tokens=SHARD, **options)


@pytest.mark.parametrize("val_fraction", [0.25, 0.01], ids=["by hash", "ends held out"])
def test_workers_and_partitions_change_nothing(
    data: DataConfig, tmp_path: Path, val_fraction: float
):
    data = dataclasses.replace(data, val_fraction=val_fraction)
    one = prepared(data, tmp_path / "one", workers=1)
    expected = files(one.directory)
    by_hash = sum(split.documents for split in one.splits.values()) == 38 + 1
    assert by_hash == (val_fraction == 0.25)
    assert len(find_units(find_inputs(data))) > 20
    assert len(expected) > 9
    assert files(prepared(data, tmp_path / "two", workers=2).directory) == expected
    array = dataclasses.replace(data, path=str(tmp_path / "array"))
    for index in (2, 0, 1):
        inputs = find_inputs(array)
        assert prepare_partition(array, inputs, Partition(index, 3), workers=2) > 2000
    assert not (tmp_path / "array").exists()
    assert files(prepared(data, tmp_path / "array", merge=True).directory) == expected
    assert not list(tmp_path.glob("*.preparing"))
    assert not list(tmp_path.glob("one.*")) + list(tmp_path.glob("two.*"))


def test_a_merge_uses_what_the_partitions_made(data: DataConfig, monkeypatch: pytest.MonkeyPatch):
    inputs = find_inputs(data)
    for index in range(2):
        prepare_partition(data, inputs, Partition(index, 2))

    def refuse(*_: object) -> None:
        raise AssertionError("did work that was done")

    monkeypatch.setattr(ByteTokenizer, "encode", refuse)
    monkeypatch.setattr("gptjax.preparation.tokenising.scan", refuse)
    assert prepare_shards(data, inputs, merge=True).splits["val"].tokens > 1000


@pytest.mark.parametrize("val_fraction", [0.25, 0.01], ids=["by hash", "ends held out"])
def test_every_part_of_a_text_is_read_once(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch, val_fraction: float
):
    """But for the passages that are cut in two, of which there is one a document."""
    parts, read = documents.Document.parts, []

    def counted(document: documents.Document, start: int, stop: int):
        for part in parts(document, start, stop):
            read.append((document.id, part))
            yield part

    monkeypatch.setattr(documents.Document, "parts", counted)
    data = dataclasses.replace(data, val_fraction=val_fraction, inputs=data.inputs[1:])
    manifest = prepare_shards(data, find_inputs(data), workers=1)
    size = sum(split.bytes for split in manifest.splits.values())
    assert size <= sum(len(part) for _, part in read) < size + 1000


@pytest.mark.parametrize("val_fraction", [0.25, 0.01], ids=["by hash", "ends held out"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_a_look_at_too_little_costs_time_and_changes_nothing(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tokenizer: str, val_fraction: float,
):  # fmt: skip
    data = dataclasses.replace(data, tokenizer=tokenizer, val_fraction=val_fraction)
    expected = files(prepared(data, tmp_path / "one").directory)
    monkeypatch.setattr(scanning, "LOOKED", 5)
    assert files(prepared(data, tmp_path / "two").directory) == expected
    if tokenizer == "bytes":
        three = dataclasses.replace(data, path=str(tmp_path / "three"))
        for index in range(2):
            prepare_partition(three, find_inputs(three), Partition(index, 2))
        assert files(prepared(data, tmp_path / "three", merge=True).directory) == expected


def test_a_kill_between_two_ways_to_split_changes_nothing(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first look is wrong; a few units are made as they have to be when it ends."""
    data = dataclasses.replace(data, val_fraction=0.01)
    expected = files(prepared(data, tmp_path / "one").directory)
    tokenise, again = UnitTokeniser.tokenise, []

    def breaks(worker: UnitTokeniser, number: int, unit: units.Unit):
        if worker.ends and len(again) == 3:
            raise KeyboardInterrupt
        again.extend([number] if worker.ends else [])
        return tokenise(worker, number, unit)

    monkeypatch.setattr(scanning, "LOOKED", 5)
    monkeypatch.setattr(UnitTokeniser, "tokenise", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepared(data, tmp_path / "two", workers=1)
    monkeypatch.setattr(UnitTokeniser, "tokenise", tokenise)
    assert files(prepared(data, tmp_path / "two").directory) == expected


def test_a_merge_names_the_partitions_that_are_missing_and_refuses_other_settings(
    data: DataConfig,
):
    inputs = find_inputs(data)
    prepare_partition(data, inputs, Partition(1, 3))
    before = files(Path(data.path + ".preparing") / "units")
    with pytest.raises(UserError, match="not finished: --partition 0/3, 2/3"):
        prepare_shards(data, inputs, merge=True)
    other = dataclasses.replace(data, val_fraction=0.1)
    for do in (
        lambda: prepare_shards(other, inputs, merge=True),
        lambda: prepare_partition(other, inputs, Partition(0, 3)),
    ):
        with pytest.raises(UserError, match=re.escape("val_fraction was 0.25, now 0.1")):
            do()
    after = files(Path(data.path + ".preparing") / "units")
    assert {name: after[name] for name in before} == before  # and what a merge has looked through
    prepare_shards(other, inputs)  # one machine alone begins anew


def test_a_partition_of_what_is_merged_does_nothing_or_is_refused(data: DataConfig, capsys):
    inputs = find_inputs(data)
    made = files(prepare_shards(data, inputs).directory)
    prepare_with_progress(data, partition=Partition(0, 2))
    assert "is complete: there is nothing left to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape("(val_fraction was 0.25, now 0.1)")):
        prepare_partition(dataclasses.replace(data, val_fraction=0.1), inputs, Partition(0, 2))
    assert files(Path(data.path)) == made
    assert not Path(data.path + ".preparing").exists()


def test_partitions_run_together_but_not_beside_a_whole_preparation(data: DataConfig):
    inputs = find_inputs(data)
    with workspace.open_workspace(data, inputs, 1, shared=True):
        prepare_partition(data, inputs, Partition(0, 2))
        with pytest.raises(UserError, match="another process is preparing"):
            prepare_shards(data, inputs)
    with (
        workspace.open_workspace(data, inputs, 1),
        pytest.raises(UserError, match="another process"),
    ):
        prepare_partition(data, inputs, Partition(0, 2))


def test_a_lock_that_was_unlinked_after_it_was_opened_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A ends and C begins between B's opening of the lock file and B's lock."""
    path, flock = str(tmp_path / "out"), fcntl.flock
    with ExitStack() as others:
        a = ExitStack()
        a.enter_context(workspace.locked_workspace(path))

        def late(*arguments: Any) -> None:
            monkeypatch.setattr(fcntl, "flock", flock)
            a.close()
            others.enter_context(workspace.locked_workspace(path))
            flock(*arguments)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(UserError, match="another process"), workspace.locked_workspace(path):
            pass
    assert os.listdir(tmp_path) == []


def test_what_locks_another_preparation_is_never_taken_for_text(data: DataConfig, tmp_path: Path):
    (tmp_path / "walked").mkdir()
    (tmp_path / "walked" / "a.txt").write_text("text")
    with workspace.locked_workspace(str(tmp_path / "walked" / "other"), shared=True) as (
        _,
        directory,
    ):
        directory.rmdir()
    for given in ("walked", "walked/*"):
        inputs = find_inputs(DataConfig("out", inputs=(str(tmp_path / given),)))
        assert [source.path.name for source in inputs] == ["a.txt"]


def test_a_damaged_unit_is_found_and_made_again(data: DataConfig, tmp_path: Path):
    expected = files(prepared(data, tmp_path / "whole").directory)
    inputs = find_inputs(data)
    for index in range(2):
        prepare_partition(data, inputs, Partition(index, 2))
    for name in ("train_000999.bin", ".val_000000.bin.12.tmp", "partition-9-of-9.done"):
        (tmp_path / "out.preparing" / name).write_text("what a kill left")
    damaged = next((tmp_path / "out.preparing" / "units").glob("*3.train"))
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"xx")
    with pytest.raises(UserError, match=f"{damaged.name} is damaged: run the same command again"):
        prepare_shards(data, inputs, merge=True, shard_tokens=SHARD)
    assert files(prepare_shards(data, inputs, shard_tokens=SHARD).directory) == expected


def test_a_break_keeps_what_is_finished_and_changed_text_starts_anew(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = files(prepared(data, tmp_path / "whole").directory)
    inputs, tokenise, made = find_inputs(data), UnitTokeniser.tokenise, []

    def breaks(worker: UnitTokeniser, number: int, unit: units.Unit):
        if len(made) == 12:
            raise KeyboardInterrupt
        if worker.finished(number) is None:
            made.append(number)
        return tokenise(worker, number, unit)

    monkeypatch.setattr(UnitTokeniser, "tokenise", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepare_shards(data, inputs, shard_tokens=SHARD, workers=1)
    assert len(set(made)) == 12
    made.append(-1)  # from here on nothing breaks
    again = prepare_shards(data, inputs, shard_tokens=SHARD, workers=1)
    assert files(again.directory) == expected
    assert len(set(made)) == len(made) > 20
    monkeypatch.undo()
    prepare_partition(dataclasses.replace(data, path=str(tmp_path / "b")), inputs, Partition(0, 1))
    Path(data.inputs[1]).write_text("another\n" * 900)
    changed = prepared(data, tmp_path / "b")
    assert sum(split.bytes for split in changed.splits.values()) != sum(
        split.bytes for split in again.splits.values()
    )


def test_units_cover_every_byte_once_and_depend_on_the_files_alone(data: DataConfig):
    inputs = find_inputs(data)
    spans = [span for unit in find_units(inputs) for span in unit]
    for source in inputs:
        own = [(s.start, s.stop) for s in spans if s.input == source]
        assert own[0][0] == 0
        assert own[-1][1] == source.size
        assert all(begin < end for begin, end in own)
        assert all(a[1] == b[0] for a, b in pairwise(own))
        assert len(own) > 5
    many = [Input(inputs[1].path)] * 3
    assert sum(len(unit) for unit in find_units(many)) > 3


def test_units_of_many_small_files_are_found_in_a_few_steps_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    count, additions = 6000, 0

    class Size(int):
        def __add__(self, other: int) -> int:
            nonlocal additions
            additions += 1
            return int(self) + other

        __radd__ = __add__

    (tmp_path / "a.txt").write_text("text")
    inputs = [Input(tmp_path / "a.txt")] * count
    one = [units.Span(inputs[0], 0, 4, Size(4))]
    monkeypatch.setattr(units, "_spans", lambda *_: one)
    assert [len(unit) for unit in find_units(inputs)] == [4096, count - 4096]
    assert additions <= 2 * count


def test_the_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert pool.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert pool.cores() == 1


# Small parts and units, and a tokenizer that takes its time; spawned workers run this file as well.
SLOWLY = """
import time
from gptjax.preparation import documents, units, pool
from gptjax.tokenizers.plain import ByteTokenizer

documents.PART_BYTES, units.SMALLEST_UNIT = 2000, 10_000
pool.PROCESS_BYTES = {process_bytes}
encode = ByteTokenizer.encode

def slowly(self, text):
    time.sleep({seconds})
    return encode(self, text)

ByteTokenizer.encode = slowly
"""
PREPARE = """
import sys
from gptjax.config import DataConfig
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs

out, *inputs = sys.argv[1:]
data = DataConfig(out, "bytes", None, tuple(inputs), 0.2)
prepare_shards(data, find_inputs(data), shard_tokens=20_000, workers=2)
hub = "gptjax.preparation.hub."
unread = {"jax", "flax", "grain", hub + "repository", hub + "streaming"}
print(sorted(unread & set(sys.modules)))
"""


def program(directory: Path, process_bytes: int, seconds: float) -> Path:
    """A script that prepares with workers as slow as itself: each imports `sitecustomize`."""
    folder = directory / f"slowly_{process_bytes}"
    folder.mkdir(exist_ok=True)
    slowly = SLOWLY.format(process_bytes=process_bytes, seconds=seconds)
    (folder / "sitecustomize.py").write_text(slowly)
    (folder / "script.py").write_text(PREPARE)
    return folder / "script.py"


def start(path: Path, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{path.parent}:{ROOT}"},
    )  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Half a megabyte: JSON lines, and a text of one document."""
    paths = [tmp_path / "a.jsonl", tmp_path / "long.txt"]
    paths[0].write_text(
        "".join(json.dumps({"text": f"{i} sea\n" * (i % 400)}) + "\n" for i in range(250))
    )
    paths[1].write_text("the long one\n" * 10_000)
    return paths


def test_processes_make_what_threads_make_and_need_neither_jax_nor_the_hub(
    tmp_path: Path, corpus: list[Path]
):
    made = []
    for process_bytes in (0, 2**30):
        out = tmp_path / f"out_{process_bytes}"
        process = start(program(tmp_path, process_bytes, 0), out, *corpus)
        assert process.communicate(timeout=60)[0] == "[]\n"
        made.append(files(out))
    assert made[0] == made[1]
    assert len(made[0]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("process_bytes", [0, 2**30], ids=["processes", "threads"])
def test_ten_kills_at_any_moment_change_nothing(
    tmp_path: Path, corpus: list[Path], process_bytes: int
):
    chance = random.Random(process_bytes)
    expected = prepare_whole(tmp_path, corpus)
    slowly, out = program(tmp_path, process_bytes, 0.01), tmp_path / "out"
    units = tmp_path / "out.preparing" / "units"
    finished = [0]
    for _ in range(10):
        process = start(slowly, out, *corpus)
        begun = time.monotonic()
        wanted = finished[-1] + chance.randint(0, 4)  # a few more units, and any moment after
        while len(list(units.glob("*.json"))) < wanted and time.monotonic() - begun < 20:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        finished.append(len([p for p in units.glob("*.json") if "scan" not in p.name]))
    assert finished[-1] >= 5
    assert finished == sorted(finished)
    process = start(program(tmp_path, 2**30, 0), out, *corpus)
    assert process.communicate(timeout=60)[0] == "[]\n"
    assert files(out) == expected
    assert not list(tmp_path.glob("out.*"))


def prepare_whole(directory: Path, corpus: list[Path]) -> dict[str, bytes]:
    process = start(program(directory, 2**30, 0), directory / "whole", *corpus)
    process.communicate(timeout=60)
    return files(directory / "whole")

"""Inspecting finds what was prepared, to the token, and every byte that changed."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_verb

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest, read_manifest
from gptjax.preparation import inspection
from gptjax.preparation.inspection import (
    count_tokens,
    inspect_with_report,
    report,
    verify_shards,
)
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files

TEXTS = ["a" * 10, "bb" * 30, "abc" * 1000, "c"]


@pytest.fixture
def four(tmp_path: Path) -> Manifest:
    """Four documents of known lengths in shards that cut them anywhere."""
    paths = [tmp_path / f"{i}.txt" for i in range(4)]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_text(text)
    data = DataConfig(str(tmp_path / "out"), "bytes", None, tuple(map(str, paths)), 0.0)
    return prepare_shards(data, text_files(data.inputs), shard_tokens=7)


def test_lengths_and_frequencies_are_counted_across_shards(four: Manifest):
    counts = count_tokens(four, "train", eot_id=256)
    assert sorted(counts.lengths) == sorted(map(len, TEXTS))
    text = "".join(TEXTS)
    expected = {ord(c): text.count(c) for c in "abc"} | {256: 4}
    assert {int(i): int(counts.frequencies[i]) for i in np.flatnonzero(counts.frequencies)} == (
        expected
    )
    said = report(four, "train", counts)
    assert re.match(r"train: 3,075 tokens, 4 documents, 3,071 bytes, 1\.001 tokens per byte, "
                    r"longest document 3,000 tokens", said)  # fmt: skip
    assert "'b' 34.5%, 'a' 32.8%, 'c' 32.6%, '' 0.1%" in said
    assert re.search(r"window 0: '(a{10}b{5}|.*)'", said)
    assert count_tokens(four, "val", eot_id=256).lengths.tolist() == []


def test_every_shard_that_changed_is_named(prepared: Manifest, tmp_path: Path):
    shutil.copytree(prepared.directory, tmp_path / "copy")
    copy, read = read_manifest(tmp_path / "copy"), []
    verify_shards(copy, read.append)
    shards = [s for split in copy.splits.values() for s in split.shards]
    assert sum(read) == sum((copy.directory / s.name).stat().st_size for s in shards)
    for shard in shards[1], shards[3]:
        with (copy.directory / shard.name).open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x01")
    with pytest.raises(UserError, match=f"^{shards[1].name}, {shards[3].name} in .* changed since"):
        verify_shards(copy)


def test_a_read_only_directory_is_inspected_and_stays_as_it_is(
    four: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """As on a mount that nobody can write, which no permission keeps root from."""

    def before_writing(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, *args, **kwargs)

    opened = Path.open
    monkeypatch.setattr(Path, "open", before_writing)
    before = sorted(four.directory.parent.rglob("*"))
    inspect_with_report(four.directory)  # it may seem writable, as a full disk does
    assert "lengths.png cannot be written" in capsys.readouterr().out
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    inspect_with_report(four.directory)
    assert "not drawn, because" in capsys.readouterr().out
    assert sorted(four.directory.parent.rglob("*")) == before


def test_large_shards_are_counted_in_parts(four: Manifest, monkeypatch: pytest.MonkeyPatch):
    whole = count_tokens(four, "train", eot_id=256)
    monkeypatch.setattr(inspection, "COUNTED_TOKENS", 2)
    parts = count_tokens(four, "train", eot_id=256)
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert parts.frequencies.tolist() == whole.frequencies.tolist()


@pytest.mark.slow
def test_the_verb_says_it_all_and_draws_the_lengths(four: Manifest, tmp_path: Path):
    done = run_verb("prepare", "--inspect", four.directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all as the manifest says; tokenizer bytes" in done.stdout
    assert "longest document 3,000 tokens" in done.stdout
    assert (four.directory / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert run_verb("prepare", "--inspect", tmp_path, cwd=tmp_path).returncode == 1

"""Inspecting finds what was prepared, to the token, and every byte that changed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_verb

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest, read_manifest
from gptjax.preparation.inspection import count_tokens, report, verify_shards
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


@pytest.mark.slow
def test_the_verb_says_it_all_and_draws_the_lengths(four: Manifest, tmp_path: Path):
    done = run_verb("prepare", "--inspect", four.directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all as the manifest says; tokenizer bytes" in done.stdout
    assert "longest document 3,000 tokens" in done.stdout
    assert (four.directory / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert run_verb("prepare", "--inspect", tmp_path, cwd=tmp_path).returncode == 1

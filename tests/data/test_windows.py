"""Windows are slices of one line of tokens, whatever the shards, and damage is named."""

import dataclasses
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.data import windows as windows_module
from gptjax.data.manifest import Manifest, Split
from gptjax.data.shards import write_shard
from gptjax.data.windows import TokenWindows


def data_of(directory: Path, tokens: np.ndarray, shard_tokens: int, dtype="uint16") -> Manifest:
    """A data set of exactly these tokens: a training split in shards, and no validation."""
    cuts = [*range(0, len(tokens), shard_tokens), len(tokens)]
    shards = tuple(
        write_shard(directory / f"train_{i:06d}.bin", tokens[a:b], dtype)
        for i, (a, b) in enumerate(pairwise(cuts))
    )
    splits = {"train": Split(len(tokens), 1, 0, shards), "val": Split(0, 0, 0, ())}
    n_vocab = int(tokens.max(initial=0)) + 1
    return Manifest(directory, "made up", "made-up", n_vocab, "", dtype, splits, {})


def stream(manifest: Manifest, split: str) -> np.ndarray:
    """All tokens of a split, read without gptjax's reader."""
    files = [manifest.directory / shard.name for shard in manifest.splits[split].shards]
    return np.concatenate([np.fromfile(f, "<u2", -1, "", 1024) for f in files]).astype(np.int32)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("context", [1, 64, 1000, 4095, 4096, 4097, 10_000])
def test_window_i_is_a_slice_of_the_whole_line(prepared: Manifest, split: str, context: int):
    tokens, windows = stream(prepared, split), TokenWindows(prepared, split, context)
    assert len(prepared.splits["train"].shards) > 10
    assert len(windows) == (len(tokens) - 1) // context > 0
    for i in {*range(0, len(windows), 1 + len(windows) // 500), len(windows) - 1}:
        window = windows[i]
        assert (window.dtype, window.shape) == (np.int32, (context + 1,))
        np.testing.assert_array_equal(window, tokens[i * context : i * context + context + 1])


@pytest.mark.parametrize("shard_tokens", [1, 3, 10, 11, 35])
def test_every_token_but_the_first_is_a_target_once_and_only_the_end_is_lost(
    tmp_path: Path, shard_tokens: int
):
    tokens = np.arange(100, 135)
    windows = TokenWindows(data_of(tmp_path, tokens, shard_tokens), "train", 10)
    rows = np.stack([windows[i] for i in range(len(windows))])
    assert rows[:, :-1].ravel().tolist() == list(range(100, 130))
    assert rows[:, 1:].ravel().tolist() == list(range(101, 131))


@pytest.mark.parametrize(
    ("tokens", "count"),
    [(0, 0), (1, 0), (7, 0), (8, 0), (9, 1), (10, 1), (16, 1), (17, 2), (25, 3)],
)
def test_a_window_needs_one_token_more_than_its_context(tmp_path: Path, tokens: int, count: int):
    windows = TokenWindows(data_of(tmp_path, np.arange(tokens), 5), "train", 8)
    assert len(windows) == count
    assert [windows[i][0] for i in range(count)] == [8 * i for i in range(count)]


@pytest.mark.parametrize("index", [-1, 3, 4, 10**12])
def test_a_window_that_is_not_there_is_an_index_error(tmp_path: Path, index: int):
    windows = TokenWindows(data_of(tmp_path, np.arange(30), 7), "train", 8)
    assert len(windows) == 3
    with pytest.raises(IndexError, match=f"window {index} of 3"):
        windows[index]


def test_a_split_without_tokens_has_no_windows(tmp_path: Path):
    windows = TokenWindows(data_of(tmp_path, np.arange(30), 7), "val", 8)
    assert len(windows) == 0
    with pytest.raises(IndexError):
        windows[0]


def test_ids_of_four_bytes_come_through(tmp_path: Path):
    tokens = np.arange(70_000 - 40, 70_000)
    windows = TokenWindows(data_of(tmp_path, tokens, 7, "uint32"), "train", 13)
    assert [windows[i].tolist() for i in range(3)] == [
        tokens[a : a + 14].tolist() for a in (0, 13, 26)
    ]


def test_a_window_may_be_changed_without_changing_the_data(prepared: Manifest):
    windows = TokenWindows(prepared, "train", 64)
    first = windows[0]
    first[:] = 0
    np.testing.assert_array_equal(windows[0], stream(prepared, "train")[:65])


@pytest.fixture
def damaged(prepared: Manifest, tmp_path: Path) -> Manifest:
    """A copy of the prepared data whose third shard ends in the id `n_vocab`."""
    shutil.copytree(prepared.directory, tmp_path / "data")
    manifest = dataclasses.replace(prepared, directory=tmp_path / "data")
    path = manifest.directory / manifest.splits["train"].shards[2].name
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + manifest.n_vocab.to_bytes(2, "little"))
    return manifest


@pytest.mark.parametrize("context", [64, 4096, 10_000])
def test_an_id_outside_the_vocabulary_names_the_shard_and_spoils_no_other_window(
    prepared: Manifest, damaged: Manifest, context: int
):
    path = damaged.directory / damaged.splits["train"].shards[2].name
    windows, whole = (
        TokenWindows(damaged, "train", context),
        TokenWindows(prepared, "train", context),
    )
    position = 3 * 4096 - 1
    for i in range(len(windows)):
        if i * context <= position <= (i + 1) * context:
            says = f"{re.escape(str(path))} holds token id 257, but .* ends at 256"
            with pytest.raises(UserError, match=says):
                windows[i]
        else:
            np.testing.assert_array_equal(windows[i], whole[i])


@pytest.mark.parametrize("size", [None, 0, 1024, 1024 + 2 * 4095])
def test_a_shard_that_went_away_or_shrank_meanwhile_is_named(damaged: Manifest, size: int | None):
    windows = TokenWindows(damaged, "train", 64)
    path = damaged.directory / damaged.splits["train"].shards[5].name
    path.unlink() if size is None else os.truncate(path, size)
    with pytest.raises(UserError, match=re.escape(str(path))):
        windows[5 * 4096 // 64]
    assert len(windows[4 * 4096 // 64]) == 65


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_few_shards_are_open_at_a_time(
    prepared: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def open_shards() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(os.path.realpath(link).startswith(f"{tmp_path}/") for link in links)

    monkeypatch.setattr(windows_module, "OPEN_SHARDS", 3)
    tokens = np.random.default_rng(0).integers(1000, size=2000)
    windows = TokenWindows(data_of(tmp_path, tokens, 100), "train", 64)
    most = 0
    for i in np.random.default_rng(1).permutation(len(windows)):
        np.testing.assert_array_equal(windows[i], tokens[64 * i : 64 * i + 65])
        most = max(most, open_shards())
    assert most == 3

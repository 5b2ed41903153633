"""Files that are deleted, cut or changed while a run uses them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from faulty_runs import STEPS, train_here
from killed_runs import assert_same_run, checkpoints

from gptjax.base.errors import UserError
from gptjax.data.manifest import Manifest, read_manifest
from gptjax.data.shards import HEADER_BYTES
from gptjax.data.windows import TokenWindows
from gptjax.runs.directory import RunDir


@pytest.fixture
def data(prepared, tmp_path) -> Manifest:
    """Data that may be damaged."""
    return read_manifest(shutil.copytree(prepared.directory, tmp_path / "data"))


def first_shard(data: Manifest, split: str) -> Path:
    return data.directory / data.splits[split].shards[0].name


def change(path: Path) -> None:
    """Other tokens of the vocabulary, in a file of the same size."""
    tokens = np.fromfile(path, "<u2", offset=HEADER_BYTES)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(tokens[::-1].tobytes())


def cut(path: Path) -> None:
    os.truncate(path, 2000)


def test_a_shard_that_is_written_to_is_compared_with_its_manifest(data, report):
    windows = TokenWindows(data, "train", 64)
    path, before = first_shard(data, "train"), windows[0].copy()
    os.utime(path, (1, 1))  # touched only
    np.testing.assert_array_equal(windows[0], before)
    shutil.copy(path, data.directory / "copy")
    (data.directory / "copy").replace(path)  # replaced by the same
    np.testing.assert_array_equal(windows[0], before)
    change(path)
    with pytest.raises(UserError, match=r"was changed while it was read.*bring the old file back"):
        windows[0]
    cut(path)
    with pytest.raises(UserError, match="truncated"):
        windows[0]
    path.unlink()
    other = TokenWindows(data, "train", 64)
    with pytest.raises(UserError, match="is missing though its manifest lists it"):
        other[0]
    report("shard changed or cut under a reader", 2, 2)


def test_a_deleted_shard_is_read_on(data, report):
    windows = TokenWindows(data, "train", 64)
    before = windows[3].copy()
    first_shard(data, "train").unlink()
    np.testing.assert_array_equal(windows[3], before)
    report("shard deleted under a reader")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [cut, change])
def test_a_run_stops_before_it_trains_on_other_data(data, tmp_path, unbroken_here, report, spoil):
    """It says which file; with the data back it goes on from its newest checkpoint."""
    kept = shutil.copytree(data.directory, tmp_path / "kept")

    def spoil_all() -> None:
        for split in data.splits.values():
            for shard in split.shards:
                spoil(data.directory / shard.name)

    with pytest.raises(UserError, match=r"shard .* (is truncated|was changed)"):
        train_here(data, tmp_path, {9: spoil_all})
    assert max(checkpoints(tmp_path)) >= 8
    shutil.copytree(kept, data.directory, dirs_exist_ok=True)
    assert train_here(data, tmp_path) == 0
    assert_same_run(tmp_path, unbroken_here)
    report(f"all shards {'cut' if spoil is cut else 'changed'} while training")


@pytest.mark.slow
def test_files_that_are_deleted_while_a_run_trains(data, tmp_path, unbroken_here, report):
    """It needs none of them: it ends as an unbroken one, with the checkpoints since then."""
    run = tmp_path / "run"

    def delete() -> None:
        for name in ("log.txt", ".lock", "config.json", "ranking.json", "loss.png"):
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / "checkpoints")
        for shard in data.directory.glob("*.bin"):
            shard.unlink()

    assert train_here(data, tmp_path, {10: delete}) == 0
    assert RunDir(run).recover_config() == [
        f"note     {run}/config.json was gone: it is that of checkpoint {STEPS} now"
    ]
    assert_same_run(tmp_path, unbroken_here)
    report("log, lock, config, checkpoints and all shards deleted")

"""Batches depend on seed and step alone: not on processes, history or where a run was resumed."""

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.config.batches import BatchSchedule
from gptjax.data.corpus import require_vocabulary
from gptjax.data.examples import IS_REAL
from gptjax.data.loader import (
    DEVICE_AHEAD,
    StepSource,
    batches_from,
    read_ahead,
    validation_batches,
)
from gptjax.data.manifest import Manifest
from gptjax.data.windows import TokenWindows, WindowExamples
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files

T = 256
ENDLESS = 10**12


def constant(rows: int) -> BatchSchedule:
    return BatchSchedule(rows, rows, 0)


@pytest.fixture(scope="module")
def windows(prepared: Manifest) -> TokenWindows:
    return TokenWindows(prepared, "train", T)


@pytest.fixture(scope="module")
def number_of(windows: TokenWindows) -> dict[bytes, int]:
    """Which window a row is."""
    table = {windows[i].tobytes(): i for i in range(len(windows))}
    assert len(table) == len(windows) > 400
    return table


def rows_of(source: StepSource, steps: range) -> np.ndarray:
    return np.concatenate([source[step]["tokens"] for step in steps])


def global_rows(windows: TokenWindows, steps: range, processes: int, rows: int = 8) -> np.ndarray:
    """The rows of all processes, each iterating by itself: [steps, rows, T + 1]."""
    parts = []
    for process in range(processes):
        source = StepSource(windows, constant(rows), steps.stop, 7, process, processes)
        with batches_from(source, steps.start) as batches:
            parts.append(np.stack([batch["tokens"] for batch in batches]))
        assert parts[-1].shape == (len(steps), rows // processes, T + 1)
    return np.concatenate(parts, axis=1)


def test_every_window_is_seen_once_an_epoch_each_time_in_another_order(
    windows: TokenWindows, number_of: dict[bytes, int]
):
    n, epochs = len(windows), 4
    rows = rows_of(StepSource(windows, constant(10), ENDLESS, seed=7), range(1 + n * epochs // 10))
    order = np.array([number_of[row.tobytes()] for row in rows[: n * epochs]]).reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(n), (epochs, 1)))
    for first in range(epochs):
        assert (order[first] == np.arange(n)).mean() < 0.02
        for second in range(first):
            assert (order[first] == order[second]).mean() < 0.02
    neighbours = np.abs(np.diff(order)).mean(axis=1)  # n / 3 where neighbours are unrelated
    np.testing.assert_allclose(neighbours, n / 3, rtol=0.15)


def test_the_seed_alone_decides_the_order(windows: TokenWindows):
    n = len(windows)
    first = {}
    for seed in (0, 1, 7, 8, 2**32 - 1):
        rows = rows_of(StepSource(windows, constant(n), ENDLESS, seed), range(3))
        again = rows_of(
            StepSource(TokenWindows(windows.manifest, "train", T), constant(n), 3, seed), range(3)
        )
        np.testing.assert_array_equal(rows, again)
        first[seed] = rows.reshape(3, n, T + 1)
    epochs = [epoch.tobytes() for rows in first.values() for epoch in rows]
    assert len(set(epochs)) == len(epochs)  # not even epoch 1 of seed 7 is epoch 0 of seed 8


def test_the_order_is_what_it_always_was(tmp_path: Path):
    """Resuming an old run on a new Grain must go on with the same data."""
    (tmp_path / "a.txt").write_text("".join(f"{i:04d}\n" for i in range(10_000)))
    data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(tmp_path / "a.txt"),), 0.0)
    manifest = prepare_shards(data, text_files(data.inputs), shard_tokens=5000)
    source = StepSource(TokenWindows(manifest, "train", 50), constant(4), ENDLESS, seed=1337)
    steps = [*range(3), *range(10**6, 10**6 + 3)]
    numbers = [
        int(bytes(row[:4].tolist())) // 10 for step in steps for row in source[step]["tokens"]
    ]
    assert numbers == [
        *[298, 835, 161, 78, 783, 442, 136, 98, 722, 898, 90, 280],
        *[323, 18, 841, 965, 780, 261, 992, 760, 594, 715, 935, 955],
    ]
    many = rows_of(source, range(500)).astype("<i4").tobytes()
    digest = hashlib.sha256(many).hexdigest()
    assert digest == "f83b76589c8bf00a0a7dad1ee6e013a80704d7ad7de80b97867788c8bc8e0c69"


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_global_batches_are_bitwise_the_same_on_any_number_of_processes(
    windows: TokenWindows, processes: int
):
    steps = range(len(windows) // 8 - 5, len(windows) // 8 + 15)  # across the end of an epoch
    alone, together = (global_rows(windows, steps, count) for count in (1, processes))
    assert alone.dtype == together.dtype == np.int32
    np.testing.assert_array_equal(alone, together)


def test_a_run_handed_from_eight_processes_to_two_to_one_sees_what_one_sees(
    windows: TokenWindows,
):
    expected = global_rows(windows, range(30), 1)
    parts = [
        global_rows(windows, steps, processes)
        for steps, processes in ((range(9), 8), (range(9, 20), 2), (range(20, 30), 1))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("step", [0, 1, 57, 199])
def test_starting_at_a_step_is_the_same_as_getting_there(windows: TokenWindows, step: int):
    source = StepSource(windows, constant(8), 200, seed=3)
    with batches_from(source, 0) as batches:
        walked = list(islice(batches, step, None))
    with batches_from(source, step) as batches:
        jumped = list(batches)
    assert len(walked) == len(jumped) == 200 - step
    for a, b in zip(walked, jumped, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    np.testing.assert_array_equal(jumped[0]["tokens"], source[step]["tokens"])


def test_the_end_of_the_run_ends_the_batches(windows: TokenWindows):
    with batches_from(StepSource(windows, constant(8), 20, seed=3), 20) as batches:
        assert list(batches) == []


def test_a_step_a_billion_steps_away_is_there_at_once(
    windows: TokenWindows, number_of: dict[bytes, int]
):
    step, n = 10**9, len(windows)
    source = StepSource(windows, constant(8), ENDLESS, seed=7)
    with batches_from(source, step) as batches:
        near = [next(batches)["tokens"] for _ in range(3)]
    np.testing.assert_array_equal(np.concatenate(near), rows_of(source, range(step, step + 3)))
    epoch = -(-8 * step // n)  # the first to begin there
    start = epoch * n - 8 * step
    rows = rows_of(source, range(step, step + n // 4 + 2))[start : start + n]
    assert sorted(number_of[row.tobytes()] for row in rows) == list(range(n))


def test_a_damaged_shard_reaches_the_consumer_as_a_user_error(prepared: Manifest, tmp_path: Path):
    shutil.copytree(prepared.directory, tmp_path / "data")
    path = tmp_path / "data" / prepared.splits["train"].shards[2].name
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + b"\xff" * (len(raw) - 1024))
    damaged = dataclasses.replace(prepared, directory=tmp_path / "data")
    source = StepSource(TokenWindows(damaged, "train", T), constant(8), 1000, seed=7)
    with (
        batches_from(source, 0) as batches,
        pytest.raises(UserError, match=f"{re.escape(str(path))} holds token id 65535"),
    ):
        list(batches)


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_few_tokens_for_one_window_is_a_user_error(prepared: Manifest, split: str):
    tokens = prepared.splits[split].tokens
    with pytest.raises(
        UserError, match=f"{re.escape(str(prepared.directory))} has too few {split}"
    ):
        StepSource(TokenWindows(prepared, split, tokens), constant(8), 10, seed=0)
    assert len(StepSource(TokenWindows(prepared, split, tokens - 1), constant(8), 10, seed=0)) == 10


def test_rows_that_do_not_divide_among_processes_are_a_user_error(windows: TokenWindows):
    with pytest.raises(UserError, match="do not divide among 4 processes"):
        StepSource(windows, constant(6), 10, 0, 0, 4)


@pytest.mark.parametrize("items", [0, 1, 2, 3, 10])
def test_reading_ahead_keeps_the_order_and_stays_two_items_ahead(items: int):
    put: list[int] = []

    def start_copy(item: int) -> dict[str, int]:
        put.append(item)
        return {"item": item}

    seen = []
    for batch in read_ahead(iter(range(items)), start_copy):
        seen.append(batch["item"])
        assert put == list(range(min(items, len(seen) + DEVICE_AHEAD)))
    assert seen == list(range(items))


def test_a_failure_while_reading_ahead_is_not_swallowed():
    def breaks() -> Iterator[int]:
        yield from range(3)
        raise UserError("the disk is gone")

    seen = []
    with pytest.raises(UserError, match="the disk is gone"):
        seen.extend(batch["item"] for batch in read_ahead(breaks(), lambda i: {"item": i}))


def real_rows(batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    is_real = np.concatenate([batch[IS_REAL] for batch in batches])
    assert (tokens.shape[1], is_real.dtype) == (T + 1, np.float32)
    assert set(is_real.tolist()) <= {0.0, 1.0}
    return tokens[is_real == 1]


@pytest.mark.parametrize(("rows", "processes"), [(1, 1), (8, 1), (8, 2), (16, 8), (1000, 4)])
@pytest.mark.parametrize("most", [None, 20, 10**9])
def test_validation_sees_the_same_windows_once_on_any_number_of_processes(
    prepared: Manifest, rows: int, processes: int, most: int | None
):
    windows = TokenWindows(prepared, "val", T)
    n = len(windows)
    chosen = range(n) if most != 20 else [i * n // 20 for i in range(20)]
    expected = np.stack([windows[i] for i in chosen])
    sides = [
        list(validation_batches(WindowExamples(windows), rows, most, process, processes))
        for process in range(processes)
    ]
    steps = -(-len(expected) // rows)
    for batches in sides:
        assert [b["tokens"].shape for b in batches] == [(rows // processes, T + 1)] * steps
    in_order = [batches[step] for step in range(steps) for batches in sides]
    np.testing.assert_array_equal(real_rows(in_order), expected)
    assert sum(b[IS_REAL].sum() for b in in_order) == len(expected)


@pytest.mark.parametrize("chosen", [1, 2, 7, 30])
def test_a_part_of_the_validation_set_is_spread_evenly_over_it(
    windows: TokenWindows, number_of: dict[bytes, int], chosen: int
):
    n = len(windows)
    rows = real_rows(list(validation_batches(WindowExamples(windows), 4, chosen)))
    numbers = [number_of[row.tobytes()] for row in rows]
    assert len(numbers) == chosen
    gaps = np.diff([*numbers, n])
    assert numbers[0] == 0
    assert set(gaps) <= {n // chosen, -(-n // chosen)}


def test_fewer_tokens_than_a_window_still_validate_on_one(windows: TokenWindows):
    (batch,) = validation_batches(WindowExamples(windows), 4, 0)
    assert batch[IS_REAL].sum() == 1


def test_the_vocabulary_is_the_datas_unless_the_config_says_another(prepared: Manifest):
    for n_vocab, tokenizer in [(None, None), (257, None), (None, "bytes"), (257, "bytes")]:
        assert require_vocabulary(prepared, n_vocab, tokenizer) == 257
    with pytest.raises(UserError, match=r"vocabulary of 257 \(bytes\).*model\.n_vocab 50257"):
        require_vocabulary(prepared, 50257, None)
    with pytest.raises(UserError, match=r"tokenised with bytes.*data\.tokenizer gpt2"):
        require_vocabulary(prepared, 257, "gpt2")

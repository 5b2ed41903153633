"""Packed rows: every example once and whole, nothing between them, and little waste."""

import numpy as np
import pytest

from gptjax.data.packing import Item, PackedRows, best_fit, packed_row, row_length


def items_of(sizes: list[int]) -> list[Item]:
    rng = np.random.default_rng(0)
    return [
        Item(
            rng.integers(1, 100, size).astype(np.int32),
            rng.integers(1, 3, size - 1).astype(np.float32),
        )
        for size in sizes
    ]


def test_a_row_holds_whole_examples_that_are_told_apart():
    a, b = items_of([4, 3])
    row = packed_row([a, b], 8)
    assert row["tokens"].tolist() == [*a.tokens, *b.tokens, 0, 0]
    assert row["weights"].tolist() == [*a.weights, 0, *b.weights, 0, 0]
    assert row["documents"].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert row["positions"].tolist()[:7] == [0, 1, 2, 3, 0, 1, 2]


def test_the_last_token_of_a_full_row_is_only_a_target():
    a, b = items_of([4, 5])
    row = packed_row([a, b], 8)
    assert row["tokens"].tolist() == [*a.tokens, *b.tokens]
    assert row["documents"].tolist() == [0] * 4 + [1] * 4
    assert row["weights"].tolist() == [*a.weights, 0, *b.weights]


def test_every_example_is_in_one_row_and_little_is_wasted():
    sizes = np.random.default_rng(1).integers(2, 60, 500).tolist()
    rows = best_fit(sizes, 128, seed=0)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 128
    assert sum(sizes) / (128 * len(rows)) > 0.98


def test_the_seed_decides_the_rows():
    sizes = np.random.default_rng(1).integers(2, 30, 100).tolist()
    assert best_fit(sizes, 64, seed=0) == best_fit(sizes, 64, seed=0)
    assert best_fit(sizes, 64, seed=0) != best_fit(sizes, 64, seed=1)


def test_an_example_longer_than_a_row_is_a_mistake():
    with pytest.raises(ValueError, match="size 9"):
        best_fit([9], 8, seed=0)


def test_rows_keep_all_weights_and_count_what_they_hold():
    items = items_of(np.random.default_rng(2).integers(2, 20, 40).tolist())
    packed = PackedRows(items, 32, seed=0)
    rows = [packed[i] for i in range(len(packed))]
    assert sum(row["weights"].sum() for row in rows) == sum(item.weights.sum() for item in items)
    assert packed.filled == sum(len(i.weights) for i in items) / (32 * len(packed))


def test_no_row_is_longer_than_all_examples_need():
    assert row_length([10] * 12, most=1024, rows=4, seed=0) == 32
    assert row_length([10] * 12, most=20, rows=4, seed=0) == 20
    assert len(best_fit([15] * 8, 1 + row_length([15] * 8, 1024, 3, seed=0), seed=0)) == 3

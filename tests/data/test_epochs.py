"""Epochs of padded batches: every example once, exact weights, the same on any processes."""

from typing import NamedTuple

import numpy as np
import pytest

from gptjax.config.batches import BatchSchedule
from gptjax.data.epochs import EpochOrder, steps_per_epoch
from gptjax.data.loader import StepSource
from gptjax.data.padding import PaddedExamples, padded_lengths


class Numbered(NamedTuple):
    """An example whose tokens are its own number."""

    number: int
    length: int


def pad_numbered(item: Numbered, length: int) -> dict[str, np.ndarray]:
    tokens_T = np.full(length, -1, np.int32)
    tokens_T[: item.length] = item.number
    return {"tokens": tokens_T, "weights": np.array(1.0, np.float32)}


def examples(count: int, longest: int = 100) -> PaddedExamples:
    lengths = [1 + (37 * n) % longest for n in range(count)]
    items = [Numbered(n, length) for n, length in enumerate(lengths)]
    return PaddedExamples(items, lengths, max(lengths), pad_numbered)


def seen(batch: dict[str, np.ndarray]) -> list[int]:
    """The numbers of the examples that count in a batch."""
    return batch["tokens"][batch["weights"] == 1, 0].tolist()


@pytest.mark.parametrize(("count", "rows"), [(10, 4), (8, 4), (3, 8), (1, 2), (37, 5)])
def test_every_example_is_read_once_an_epoch_and_a_partial_batch_is_weighted_as_it_is(count, rows):
    order, steps = EpochOrder(examples(count), rows, seed=7), steps_per_epoch(count, rows)
    epochs = []
    for epoch in range(3):
        first = epoch * steps
        numbers = [range(rows * s, rows * (s + 1)) for s in range(first, first + steps)]
        batches = [order.batch(n, n) for n in numbers]
        epochs.append([number for batch in batches for number in seen(batch)])
        assert [len(batch["weights"]) for batch in batches] == [rows] * steps
        assert sum(float(batch["weights"].sum()) for batch in batches) == count
    assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 3
    assert count < 8 or len(set(map(tuple, epochs))) == 3


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_and_the_length_of_one(processes):
    ramp = BatchSchedule(8, 8, 0)
    data = examples(19)

    class Data:
        def shuffled(self, seed: int) -> EpochOrder:
            return EpochOrder(data, 8, seed)

    alone = StepSource(Data(), ramp, 4, seed=3)
    parts = [StepSource(Data(), ramp, 4, 3, p, processes) for p in range(processes)]
    for step in range(4):
        own = [part[step] for part in parts]
        joined = {name: np.concatenate([b[name] for b in own]) for name in own[0]}
        for name, x in alone[step].items():
            real = joined["weights"] == 1
            np.testing.assert_array_equal(joined[name][real], x[real])
            assert joined[name].shape == x.shape
        np.testing.assert_array_equal(joined["weights"], alone[step]["weights"])


def test_the_same_seed_gives_the_same_rows_in_any_access_order():
    first, second, other = (EpochOrder(examples(9), 4, seed) for seed in (1, 1, 2))
    rows = range(36)
    forwards = [first.place(row) for row in rows]
    assert [second.place(row) for row in reversed(rows)] == forwards[::-1]
    assert [other.place(row) for row in rows] != forwards


def test_batches_have_few_lengths_none_longer_than_needed_and_forms_name_all_of_them():
    data = examples(200)
    order, lengths = EpochOrder(data, 4, seed=0), set()
    for step in range(150):
        numbers = range(4 * step, 4 * step + 4)
        batch = order.batch(numbers, numbers)
        length = batch["tokens"].shape[1]
        places = [p for row in numbers if (p := order.place(row)) is not None]
        needed = max(data.lengths[p] for p in places)
        assert length == next(n for n in padded_lengths(100) if n >= needed)
        lengths.add(length)
    forms = [form["tokens"].shape[0] for form in data.forms()]
    assert lengths <= set(forms) == set(padded_lengths(100))
    assert forms == sorted(forms)


def test_a_length_that_never_occurs_has_no_form():
    items = [Numbered(0, 10), Numbered(1, 90)]
    data = PaddedExamples(items, [10, 90], 200, pad_numbered)
    assert [form["tokens"].shape[0] for form in data.forms()] == [32, 104]
    assert padded_lengths(200) == [32, 56, 104, 200]

"""Splits: all examples once, equal texts together, every class in proportion, on any machine."""

import random
from collections import Counter

import pytest

from gptjax.data.splitting import class_weights, divide, undersampled


def drawn(seed: int) -> tuple[list[tuple[str, ...]], list[str]]:
    """Texts and classes of random sizes, some of the texts many times."""
    chance = random.Random(seed)
    keys, classes = [], []
    for name in "abcde"[: chance.randint(1, 5)]:
        for n in range(chance.choice((1, 2, 3, 10, 100, 400))):
            times = chance.choices((1, 2, 5), (20, 2, 1))[0]
            keys += [(f"{name}{n}", "x")] * times
            classes += [name] * times
    order = chance.sample(range(len(keys)), len(keys))
    return [keys[i] for i in order], [classes[i] for i in order]


@pytest.mark.parametrize("seed", range(40))
def test_splits_hold_everything_once_and_each_class_in_proportion(seed):
    keys, classes = drawn(seed)
    chance = random.Random(seed)
    shares = [chance.choice((0.0, 0.05, 0.1, 0.3)), chance.choice((0.0, 0.2, 0.3))]
    division = divide(keys, classes, *shares, seed=seed)
    assert sorted(index for part in division for index in part) == list(range(len(keys)))
    assert all(part == sorted(part) for part in division)
    found = [{keys[i] for i in part} for part in division]
    assert sum(map(len, found)) == len(set(keys))
    sizes = Counter(classes)
    assert {classes[i] for i in division.train} == set(classes)
    for share, part in zip(shares, division[1:], strict=True):
        for name, n in Counter(classes[i] for i in part).items():
            assert n <= share * sizes[name] + 1
        for name, size in sizes.items():  # a group of five may not fit
            held = sum(classes[i] == name for i in part)
            assert held >= min(share * size - 5, size - 5)


def test_shares_of_single_examples_are_exact_in_total():
    classes = ["spam"] * 747 + ["ham"] * 4827
    keys = [(str(n),) for n in range(len(classes))]
    division = divide(keys, classes, 0.1, 0.2, seed=0)
    assert [len(part) for part in division] == [3902, 557, 1115]
    for part in division:
        spam = sum(classes[i] == "spam" for i in part)
        assert abs(spam - len(part) * 747 / 5574) < 1.5


def test_a_class_of_one_example_is_learnt():
    names = [f"class {n}" for n in range(10)]
    division = divide([(name,) for name in names], names, 0.3, 0.3, seed=0)
    assert division.train == list(range(10))


def test_the_order_of_the_file_does_not_matter_and_the_seed_does():
    keys, classes = drawn(3)
    texts = [{keys[i] for i in part} for part in divide(keys, classes, 0.1, 0.2, seed=5)]
    turned = divide(keys[::-1], classes[::-1], 0.1, 0.2, seed=5)
    assert [{keys[::-1][i] for i in part} for part in turned] == texts
    other = divide(keys, classes, 0.1, 0.2, seed=6)
    assert {keys[i] for i in other.test} != texts[2]


def test_a_division_is_the_same_for_ever():
    keys = [(f"text {n}",) for n in range(20)]
    division = divide(keys, [n % 2 for n in range(20)], 0.1, 0.2, seed=0)
    assert (division.validation, division.test) == GOLDEN


GOLDEN = ([1, 18], [2, 3, 7, 14])


def test_undersampling_leaves_as_many_of_each_class_as_the_rarest_has():
    keys, classes = drawn(0)
    chosen = undersampled(keys, classes, seed=1)
    counts = Counter(classes[i] for i in chosen)
    assert dict(counts) == dict.fromkeys(set(classes), min(Counter(classes).values()))
    assert chosen == sorted(set(chosen))
    assert undersampled(keys, classes, seed=2) != chosen


def test_class_weights_have_mean_1_over_the_examples_and_make_classes_count_alike():
    classes = ["a"] * 7 + ["b"] * 2 + ["c"]
    weights = class_weights(classes)
    assert sum(weights[name] for name in classes) == pytest.approx(10)
    totals = {name: weights[name] * n for name, n in Counter(classes).items()}
    assert list(totals.values()) == pytest.approx([10 / 3] * 3)

"""Divides examples into training, validation and test: by a seed, class by class.

Examples with the same key, which is their text, stay together. The order in which texts are dealt
out is that of a hash of seed and text, so it does not depend on the order of the file, on the
machine, or on a library's random numbers.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from gptjax.base.errors import UserError
from gptjax.config import DataConfig

Key = tuple[str, ...]
Row = TypeVar("Row")


class Division(NamedTuple):
    """Indices of the examples of each split, in the order of the file."""

    train: list[int]
    validation: list[int]
    test: list[int]


def divide(
    keys: Sequence[Key],
    classes: Sequence[Hashable],
    validation: float,
    test: float,
    seed: int,
) -> Division:
    """Give each split its share of every class, and whole groups of examples with equal keys.

    A group counts as its most frequent class. Every class keeps an example for training. Without
    classes, all of `classes` are equal.
    """
    groups: dict[Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    class_of = {
        key: Counter(classes[i] for i in members).most_common(1)[0][0]
        for key, members in groups.items()
    }
    sizes = Counter(class_of[key] for key in keys)
    order = sorted(groups, key=lambda key: _drawn(seed, key))
    names = list(dict.fromkeys(class_of[key] for key in order))
    counts = [sizes[name] for name in names]
    n_test = _shares(counts, test, [n - 1 for n in counts])
    left = [n - 1 - taken for n, taken in zip(counts, n_test, strict=True)]
    n_val = _shares(counts, validation, left)
    room = {
        name: [t, v] for name, t, v in zip(names, n_test, n_val, strict=True)
    }  # of test and validation
    division = Division([], [], [])
    splits = division.test, division.validation
    for key in order:
        members, rooms = groups[key], room[class_of[key]]
        which = next((n for n in (0, 1) if len(members) <= rooms[n]), None)
        if which is None:
            division.train.extend(members)
        else:
            rooms[which] -= len(members)
            splits[which].extend(members)
    return Division(*map(sorted, division))


def _drawn(seed: int, key: Key) -> bytes:
    return hashlib.sha256(json.dumps([seed, *key]).encode()).digest()


def _shares(counts: Sequence[int], share: float, most: Sequence[int]) -> list[int]:
    """Examples of each class, `round(share * all)` in total as far as `most` lets them.

    Classes get the whole part of their share; those with the largest rest get one more.
    """
    exact = [share * n for n in counts]
    found = [min(int(x), limit) for x, limit in zip(exact, most, strict=True)]
    missing = round(share * sum(counts)) - sum(map(int, exact))
    by_rest = sorted(range(len(counts)), key=lambda n: int(exact[n]) - exact[n])
    for n in [n for n in by_rest if found[n] < most[n]][: max(0, missing)]:
        found[n] += 1
    return found


def divide_files(
    files: Sequence[Sequence[Row] | None],
    key_of: Callable[[Row], Key],
    class_of: Callable[[Row], Hashable],
    data: DataConfig,
) -> list[list[Row]]:
    """The rows of training, validation and test, from one file to divide or from several.

    The second and third file are those given for validation and test, or None. A row whose key is
    in a file given for another split stays there, and is left out here. Raises `UserError` if that
    is all of them.
    """
    first, given_validation, given_test = files
    test = list(given_test or ())
    taken = {key_of(row) for row in test}
    validation = [row for row in given_validation or () if key_of(row) not in taken]
    taken.update(map(key_of, validation))
    rows = [row for row in first or () if key_of(row) not in taken]
    if not rows:
        raise UserError(
            f"no example is left for training: all of {data.examples} are in a held-out file too, "
            "and are left out. Give other examples, or other held-out files"
        )
    shares = (
        0.0 if given_validation is not None else data.val_fraction,
        0.0 if given_test is not None else data.test_fraction,
    )
    division = divide(
        [key_of(row) for row in rows], [class_of(row) for row in rows], *shares, data.split_seed
    )
    own = [[rows[index] for index in indices] for indices in division]
    return [own[0], validation + own[1], test + own[2]]


def repeats(keys: Sequence[Hashable]) -> int:
    """Examples that repeat an earlier one.

    >>> repeats(["a", "b", "a", "a"])
    2
    """
    return len(keys) - len(set(keys))


def count_with(count: int, verbs: tuple[str, str], rest: str) -> str:
    """A note about so many examples, with the verb for one or for several.

    >>> count_with(1, ("is", "are"), "longer"), count_with(1200, ("is", "are"), "longer")
    ('1 example is longer', '1,200 examples are longer')
    """
    is_one = count == 1
    return f"{count:,} example{'s' * (not is_one)} {verbs[not is_one]} {rest}"


def about_repeats(keys: Sequence[Hashable], used: int, what: str) -> list[str]:
    """Notes about examples that repeat the text or the prompt of another; `used` are not left out.

    >>> about_repeats(["a", "b", "a"], 3, "text")
    ['1 example repeats the text of another; equal texts are in one split']
    """
    if not (count := repeats(keys)):
        return []
    rest = f"the {what} of another; equal {what}s are in one split"
    notes = [count_with(count, ("repeats", "repeat"), rest)]
    if left_out := len(keys) - used:
        rest = f"left out: a held-out file has the {what}"
        notes.append(count_with(left_out, ("is", "are"), rest))
    return notes


def about_cuts(count: int, context: int, what: str) -> list[str]:
    """A note about examples that have lost the end of something.

    >>> about_cuts(1, 8, "the text")
    ['1 example is longer than 8 tokens; the end of the text is cut']
    """
    rest = f"longer than {context} tokens; the end of {what} is cut"
    return [count_with(count, ("is", "are"), rest)] if count else []


def undersampled(keys: Sequence[Key], classes: Sequence[Hashable], seed: int) -> list[int]:
    """Indices of as many examples of each class as the rarest has, drawn by `seed`.

    Raschka (2024), listing 6.2, for any number of classes.
    """
    by_class: dict[Hashable, list[int]] = defaultdict(list)
    order = sorted(range(len(keys)), key=lambda i: (_drawn(seed, keys[i]), i))
    for index in order:
        by_class[classes[index]].append(index)
    least = min(map(len, by_class.values()))
    return sorted(index for members in by_class.values() for index in members[:least])


def class_weights(classes: Sequence[Hashable]) -> dict[Hashable, float]:
    """The weight n / (C n_c) of each of C classes, whose mean over the n examples is 1.

    >>> class_weights(["ham", "ham", "ham", "spam"])["spam"]
    2.0
    """
    counts = Counter(classes)
    return {name: len(classes) / (len(counts) * n) for name, n in counts.items()}

"""Mixtures deal rows out in proportion, in every prefix, as a function of the row alone."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjax.base.errors import ConfigError
from gptjax.config import Config, DataConfig
from gptjax.config.batches import batch_schedule
from gptjax.config.names import MixtureSource, mistakes, parse_change, parse_source
from gptjax.config.presets import load_config
from gptjax.config.validation import validate
from gptjax.data.mixture import Mixture, Shares

GPT3 = [60, 22, 8, 8, 3]
weights = st.lists(st.fractions(min_value=0, max_value=100, max_denominator=1000),
                   min_size=1, max_size=8).filter(any)  # fmt: skip


def planned(*numbers: float, changes: dict[int, list[int]] | None = None, rows: int = 8) -> Mixture:
    sources = [MixtureSource(f"data/{k}", Fraction(w), None) for k, w in enumerate(numbers)]
    later = [(step, [Fraction(w) for w in ws]) for step, ws in (changes or {}).items()]
    return Mixture(sources, later, lambda step: step * rows)


@example(parts=[Fraction(w) for w in GPT3], start=0)
@example(parts=[Fraction(1)] * 8, start=10**15)
@example(parts=[Fraction(0), Fraction(1), Fraction(0)], start=3)
@given(parts=weights, start=st.integers(0, 10**15))
@settings(deadline=None, derandomize=True)
def test_every_prefix_is_in_proportion_and_each_row_has_one_source(parts, start):
    shares, total = Shares(parts), sum(parts)
    before = shares.counts(start)
    for rows in range(start + 1, start + 60):
        counts = shares.counts(rows)
        assert sum(counts) == rows
        grown = [after - earlier for after, earlier in zip(counts, before, strict=True)]
        assert sorted(grown) == [0] * (len(parts) - 1) + [1]
        for count, weight in zip(counts, parts, strict=True):
            assert abs(count - rows * weight / total) <= max(1, (len(parts) - 1) / 2)
            assert count == 0 or weight
        before = counts


def test_gpt3_s_mixture_never_strays_by_a_row():
    shares = Shares([Fraction(w) for w in GPT3])
    counts = np.array([shares.counts(rows) for rows in range(10_101)])
    ideal = np.arange(10_101)[:, None] * np.array(GPT3) / sum(GPT3)
    assert np.abs(counts - ideal).max() < 0.9
    assert counts[-1].tolist() == [6000, 2200, 800, 800, 300]
    assert counts[101].tolist() == GPT3  # and exactly right at every whole round


def test_the_shipped_mixture_is_gpt3_s_table():
    config = load_config("gpt3_mixture")
    sources = [parse_source(text) for text in config.data.mixture]
    assert [source.weight for source in sources] == GPT3
    rows = batch_schedule(config).rows_before(config.train.max_steps)
    counts = Mixture(sources, [], lambda step: step).counts(rows)
    held = np.array([410, 19, 12, 55, 3]) * 1e9
    epochs = np.array(counts) * config.context / held
    np.testing.assert_allclose(epochs, [0.43, 3.44, 1.98, 0.43, 2.97], atol=0.005)
    assert all(e <= s.max_epochs for e, s in zip(epochs, sources, strict=True) if s.max_epochs)


@pytest.mark.parametrize("changes", [{}, {3: [0, 1, 1], 7: [5, 0, 5]}])
def test_places_count_every_source_from_its_first_row_on(changes):
    mixture = planned(6, 3, 1, changes=changes)
    taken = [0, 0, 0]
    for row in range(200):
        assert mixture.counts(row) == taken
        source, index = mixture.place(row)
        assert index == taken[source]
        taken[source] += 1


def test_other_weights_hold_from_the_first_row_of_their_step():
    mixture = planned(1, 0.5, changes={3: [0, 1], 5: [1, 0]})
    assert [mixture.place(row)[0] for row in range(24, 40)] == [1] * 16
    assert [mixture.place(row)[0] for row in range(40, 60)] == [0] * 20
    assert mixture.counts(24) == [16, 8]
    shares = {step: mixture.shares(step) for step in (0, 2, 3, 4, 5, 100)}
    first, second, third = [2 / 3, 1 / 3], [0, 1], [1, 0]
    assert list(shares.values()) == [first, first, second, second, third, third]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("data/a=60", ("data/a", Fraction(60), None)),
        ("a=b=0.5", ("a=b", Fraction(1, 2), None)),
        ("later=0", ("later", Fraction(0), None)),
        ("/x y/z=1e-3:2.5", ("/x y/z", Fraction(1, 1000), 2.5)),
    ],
)
def test_a_source_is_a_directory_a_weight_and_perhaps_a_cap(text: str, source):
    assert parse_source(text) == source


def test_a_change_has_a_step_and_a_weight_for_every_source():
    assert parse_change("100=1,0,0.5", 3) == (100, [1, 0, Fraction(1, 2)])


@pytest.mark.parametrize(
    ("sources", "changes", "words"),
    [
        (["data/a"], [], "data/a' has no directory before a ="),
        (["=3"], [], "no directory"),
        (["a=x"], [], "'x' is not a number of 0 or more"),
        (["a=-1"], [], "'-1' is not a number of 0 or more"),
        (["a=nan"], [], "'nan' is not a number"),
        (["a=0", "b=0"], ["5=1,1"], "needs at least one weight above 0"),
        (["a=1:0"], [], "'0' must be above 0"),
        (["a=1:"], [], "'' is not a number"),
        (["a=1", "a=2"], [], "names a directory twice: a, a"),
        (["a/b=1", "a//b/=2"], [], "names a directory twice: a/b, a//b/"),
        (["a=1", "b=1"], ["5=1"], "'5=1' needs 2 weights, not all of them 0"),
        (["a=1", "b=1"], ["5=0,0"], "not all of them 0"),
        (["a=1"], ["0=1"], "does not begin with a step of 1 or more"),
        (["a=1"], ["x=1"], "does not begin with a step"),
        (["a=1"], ["5=1", "5=2"], r"increasing steps, not at [5, 5]"),
        ([], ["5=1"], "needs data.mixture, whose weights it changes"),
    ],
)
def test_a_mixture_that_is_none_is_refused_with_the_reason(sources, changes, words):
    assert [words in message for _, message in mistakes(sources, changes)] == [True]
    data = DataConfig(mixture=tuple(sources), mixture_changes=tuple(changes))
    with pytest.raises(ConfigError, match=r"has 1 problem:\n  - data\.mixture"):
        validate(Config(data=data))


@given(st.data())
def test_weights_that_change_often_starve_nobody(data):
    """Counts add up, one grows by every row, and shares are kept over a hundred changes."""
    n = data.draw(st.integers(1, 5))
    some = st.lists(st.sampled_from([0, 1, 3, 8, 60]), min_size=n, max_size=n).filter(any)
    weights = [Fraction(w) for w in data.draw(some)]
    every, changes = data.draw(st.integers(1, 9)), data.draw(st.lists(some, max_size=20))
    shares, plan = Shares(weights), [weights]
    for i, change in enumerate(changes, 1):
        plan.append([Fraction(w) for w in change])
        shares.change(i * every, plan[-1])
    ideal, before = [Fraction(0)] * n, [0] * n
    for row in range(every * len(plan)):
        now, after = plan[row // every], shares.counts(row + 1)
        (source,) = [k for k in range(n) if after[k] != before[k]]
        assert after[source] == before[source] + 1
        assert now[source] > 0
        ideal = [share + w / sum(now) for share, w in zip(ideal, now, strict=True)]
        assert max(abs(a - b) for a, b in zip(after, ideal, strict=True)) < 2 + len(changes) / 4
        before = after


def test_the_same_weights_again_change_nothing():
    weights = [Fraction(w) for w in (60, 22, 8, 8, 3)]
    once, often = Shares(weights), Shares(weights)
    for row in range(1, 400):
        often.change(row, weights)
    assert [often.counts(r) for r in range(500)] == [once.counts(r) for r in range(500)]

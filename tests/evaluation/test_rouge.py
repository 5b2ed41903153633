"""ROUGE-L against a recursion over pairs of words, known values, and the package rouge_score."""

import itertools
import json
import random
from functools import cache

import pytest

from gptjax.evaluation.rouge import is_exact_match, rouge_l


def by_definition(words: tuple[str, ...], wanted: tuple[str, ...]) -> float:
    @cache
    def longest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if words[i - 1] == wanted[j - 1]:
            return 1 + longest(i - 1, j - 1)
        return max(longest(i - 1, j), longest(i, j - 1))

    common = longest(len(words), len(wanted))
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def test_random_texts_score_as_the_definition_says():
    chance = random.Random(0)
    for _ in range(200):
        texts = [tuple(chance.choices("abcd", k=chance.randint(0, 9))) for _ in range(2)]
        expected = by_definition(*texts)
        assert rouge_l(" ".join(texts[0]), ", ".join(texts[1])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        # Lin (2004), section 3.1: recall and precision 3/4, then 2/4
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("Don't PANIC!", "don t panic", 1.0),
        ("", "something", 0.0),
        ("...", "!?", 0.0),
        ("été", "t", 1.0),  # letters beyond a to z divide words
    ],
)
def test_known_values(response, reference, expected):
    assert rouge_l(response, reference) == pytest.approx(expected)


@pytest.mark.slow
def test_it_is_what_rouge_score_computes(test_data):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    records = json.loads((test_data / "instructions.json").read_text())[:60]
    for first, second in itertools.pairwise(records):
        for text in (second["output"], first["instruction"] + first["output"]):
            expected = scorer.score(first["output"], text)["rougeL"].fmeasure
            assert rouge_l(text, first["output"]) == pytest.approx(expected)


def test_blanks_alone_do_not_make_a_response_wrong():
    assert is_exact_match("\n45 km  are\t45,000 m. ", "45 km are 45,000 m.")
    assert not is_exact_match("45 km are 45,000 m", "45 km are 45,000 m.")
    assert is_exact_match("", " \n")

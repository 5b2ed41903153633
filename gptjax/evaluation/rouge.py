"""How alike two texts are: ROUGE-L, and whether they are the same.

ROUGE-L (Lin 2004) is computed as the package rouge_score does it without stemming: words are runs
of the letters a to z and of digits after lower-casing. Text in another script has none, so it
scores 0.
"""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(response: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words, 0 to 1.

    >>> round(rouge_l("He goes to the park.", "He goes there every day"), 3)
    0.4
    """
    words, wanted = (_WORD.findall(text.lower()) for text in (response, reference))
    common = _longest_common(words, wanted)
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def is_exact_match(response: str, reference: str) -> bool:
    """Whether two texts are the same but for blanks: those at the ends, and their kind and number.

    >>> is_exact_match(" 45 km  is\\n45000 m.", "45 km is 45000 m."), is_exact_match("Yes", "yes")
    (True, False)
    """
    return response.split() == reference.split()


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; one row of the table is kept."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]

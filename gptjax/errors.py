"""Mistakes a user can mend, kept apart from bugs.

A `UserError` reaches the terminal as one message that says what was expected, what came and what
to do next. Anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A problem outside the program: missing data, a damaged file, a run that cannot go on."""

    exit_code = 1


class ConfigError(UserError):
    """Every problem found in a configuration, listed together (exit code 2, as for bad usage)."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"the configuration has {count}:"] + [f"  - {p}" for p in self.problems]
        super().__init__("\n".join(lines))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean X?)"` for the known word nearest to `word`, or `""` for none."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""

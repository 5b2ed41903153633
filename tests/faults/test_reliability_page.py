"""docs/reliability.md names tests that exist."""

import re

import pytest
from conftest import ROOT

NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_a_named_test_exists(path, name):
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_row_names_a_test():
    rows = re.findall(r"^\| .*\|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    headings = [row for row in rows if row.startswith(("| fault |", "| issue |"))]
    assert len(headings) == 2
    assert len(rows) - len(headings) == len(NAMED)

"""`python -m gptjax` lists every verb there is with a line; anything else is one sentence."""

import importlib

import pytest
from conftest import ROOT

NOT_VERBS = {"__init__", "__main__", "cli"}


@pytest.fixture
def overview():
    return importlib.import_module("gptjax.__main__")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_every_verb_has_a_line(overview, argv, capsys):
    assert overview.overview(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    verbs = {path.stem for path in (ROOT / "gptjax").glob("*.py")} - NOT_VERBS
    assert {
        line.split()[2].removeprefix("gptjax.") for line in lines if "-m gptjax." in line
    } == verbs
    assert set(overview.VERBS) == verbs


@pytest.mark.parametrize(
    ("word", "advice"),
    [("train", "write python -m gptjax.train"), ("trian", "did you mean train?"), ("--x", "")],
)
def test_an_argument_is_answered_with_what_to_write(overview, word, advice, capsys):
    assert overview.overview([word, "--config", "tiny"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: unexpected argument {word}: ")
    assert advice in output.err

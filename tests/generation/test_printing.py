"""Samples as a reader sees them: tables of tokens, columns of two models, lines of JSON."""

import io
import json
import math
import os
import sys

import pytest

from gptjax.generation.continuing import Continued
from gptjax.generation.json_lines import json_lines, sample_row, token_rows
from gptjax.generation.printing import print_side_by_side, token_table, token_text
from gptjax.generation.prompts import Prompt
from gptjax.generation.requests import Token
from gptjax.tokenizers.plain import ByteTokenizer

TOKENIZER = ByteTokenizer()
TOKENS = [
    Token(97, math.log(0.5), ((97, math.log(0.5)), (0xC3, math.log(0.25)))),
    Token(256, -1000.0, ((10, 0.0),)),
]


def test_a_table_shows_every_token_with_the_likeliest_ones():
    assert token_table(TOKENS, TOKENIZER).splitlines() == [
        "token           logprob  probability  most likely",
        "'a'             -0.6931       50.00%  'a' 50.0%  '\\xc3' 25.0%",
        "end-of-text  -1000.0000        0.00%  '\\n' 100.0%",
    ]


@pytest.mark.parametrize(
    ("token", "shown"), [(0x1B, r"'\x1b'"), (0x5C, r"'\\'"), (0x27, '"\'"'), (0xFF, r"'\xff'")]
)
def test_no_token_reaches_a_terminal_as_it_is(token, shown):
    assert token_text(TOKENIZER, token) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TEXTS = ["one [red]two[/red] " * 8, "éé\n\x1b[31mthree"]


def test_two_texts_stand_side_by_side_on_a_wide_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    print_side_by_side(["A", "B"], TEXTS, "sample 0")
    lines = screen.getvalue().splitlines()
    assert lines[0] == "sample 0"
    [line] = [line for line in lines if "éé" in line]
    assert line.index("one [red]two[/red]") < line.index("éé")
    assert max(map(len, lines)) <= 100
    assert "\x1b[31m" not in screen.getvalue()


@pytest.mark.parametrize(("screen", "columns"), [(Terminal(), "79"), (io.StringIO(), "200")])
def test_elsewhere_they_follow_each_other(screen, columns, monkeypatch):
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", columns)
    print_side_by_side(["A", "B"], ["one", "two"], "sample 0")
    assert screen.getvalue() == "sample 0\n== A\none\n\n== B\ntwo\n\n"


def test_a_row_of_json_has_all_of_a_sample_and_of_its_line():
    sample = Continued(5, "a", TOKENS, "stop")
    row = sample_row(sample, Prompt("p", "", {"id": 7}), 1, 3)
    assert row == {
        "prompt": "p", "text": "a", "finish_reason": "stop", "tokens": [97, 256],
        "seed": 3, "sample": 1, "id": 7,
    }  # fmt: skip
    first, second = json.loads(json.dumps(token_rows(TOKENS, TOKENIZER)))
    assert (first["token"], first["top"][0]["id"], second["token"]) == ("a", 97, "")
    assert first["top"][0]["logprob"] == first["logprob"]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, capsys):
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with json_lines(out) as write:
        write({"text": "ü\ud800"})
        assert part.read_text() == '{"text": "ü?"}\n'  # at once: nothing is lost with the process
        assert not out.exists()
    assert os.listdir(tmp_path) == ["out.jsonl"]

    def stopped() -> None:
        with json_lines(out) as write:
            write({"text": "second"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert out.read_text() == '{"text": "ü?"}\n'
    assert part.read_text() == '{"text": "second"}\n'
    assert str(part) in capsys.readouterr().err

"""A file of prompts is read whole and refused whole, with the number of every broken line."""

import pytest

from gptjax.base.errors import UserError
from gptjax.generation.prompts import read_prompts


def read(tmp_path, content: bytes, name: str = "prompts.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_prompts(path)


def test_each_line_is_a_prompt_as_it_stands(tmp_path):
    content = "\ufeffThe {\n\n  Zürich \r\nlast".encode()
    assert [p.text for p in read(tmp_path, content)] == ["The {", "", "  Zürich ", "last"]
    assert read(tmp_path, b"one\ntwo\n")[1].place == f"line 2 of {tmp_path / 'prompts.txt'}"
    assert [p.text for p in read(tmp_path, '{"prompt": 1}\u2028\x0b'.encode())] == [
        '{"prompt": 1}\u2028\x0b'
    ]


def test_json_lines_keep_their_other_fields(tmp_path):
    content = b'{"id": 7, "prompt": "a\\nb"}\n\n{"prompt": ""}\n'
    first, second = read(tmp_path, content, "prompts.JSONL")
    assert (first.text, first.fields) == ("a\nb", {"id": 7})
    assert (second.text, second.fields) == ("", {})
    assert second.place.startswith("line 3 of")


def test_a_line_of_many_brackets_is_a_broken_one(tmp_path):
    with pytest.raises(UserError, match="line 1: its brackets"):
        read(tmp_path, b'{"prompt": "x", "deep": ' + b"[" * 200_000, "p.jsonl")


def test_all_broken_lines_are_listed(tmp_path):
    content = (
        b'{"prompt": "good"}\n{"prompt"}\n["prompt"]\n{"prompt": 3}\n{"prompt": "", "text": 1}'
    )
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, "p.jsonl")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [f"- line {n}" for n in (2, 3, 4, 5)]
    assert "not JSON" in lines[0]
    assert 'a text as its field "prompt"' in lines[1]
    assert "its own field text" in lines[3]
    with pytest.raises(UserError, match="line 2: it is not UTF-8"):
        read(tmp_path, b"good\n\xff\n")
    with pytest.raises(UserError, match="and 8 more"):
        read(tmp_path, b"{\n" * 20, "p.jsonl")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_a_file_without_prompts_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path, b"", name)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")

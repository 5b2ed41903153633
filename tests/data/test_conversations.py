"""Files of instructions: both formats, both layouts, and one message for each mistake."""

import gzip
import json
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.data.conversations import read_conversations
from gptjax.data.templates import Message

ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Greet.", "input": None, "output": "Hé!"},
    {"instruction": "Leave.", "output": "Bye."},
]
CHAT = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "Two."},
        ]
    },
]


def as_array(records: list) -> str:
    return json.dumps(records, indent=2, ensure_ascii=False)


def as_lines(records: list) -> str:
    return "\ufeff" + "\n\n".join(map(json.dumps, records)) + "\n"


@pytest.mark.parametrize("layout", [as_array, as_lines])
def test_alpaca_records_become_a_question_and_an_answer(tmp_path, layout):
    path = tmp_path / "any.name"
    path.write_text(layout(ALPACA))
    template, found = read_conversations(path)
    assert template == "alpaca"
    assert found == [
        (Message("user", "Add.", "1 2"), Message("assistant", "3")),
        (Message("user", "Greet."), Message("assistant", "Hé!")),
        (Message("user", "Leave."), Message("assistant", "Bye.")),
    ]


@pytest.mark.parametrize("layout", [as_array, as_lines])
def test_chats_keep_their_messages(tmp_path, layout):
    path = tmp_path / "chats"
    path.write_text(layout(CHAT))
    template, found = read_conversations(path)
    assert template == "chat"
    assert [[message.role for message in chat] for chat in found] == [
        ["user", "assistant"],
        ["system", "user", "assistant", "user", "assistant"],
    ]
    assert found[1][3] == Message("user", "2?")


def chat_of(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"output": "3"}, "line 2: it has no instruction: it has output"),
        ({"instruction": "Add.", "input": 3, "output": "3"}, "line 2: input is not text: 3"),
        ({"instruction": "", "output": "3"}, "line 2: the instruction is empty"),
        ([1, 2], "line 2, is a JSON list"),
    ],
)
def test_a_wrong_alpaca_record_is_named(tmp_path, record, message):
    path = tmp_path / "alpaca.jsonl"
    path.write_text(json.dumps(ALPACA[0]) + "\n" + json.dumps(record))
    with pytest.raises(UserError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (chat_of("user"), "it ends with a message of the user: expected one of the assistant"),
        (chat_of("user", "user"), "message 2 is of the user: expected one of the assistant"),
        (chat_of("assistant"), "message 1 is of the assistant: expected one of the user"),
        (chat_of("user", "system", "assistant"), "message 2 has the role system, which only"),
        (chat_of("user", "bot"), "message 2 has the role 'bot': expected system, user or as"),
        ({"messages": []}, "it has no messages"),
        ({"messages": "Hi"}, "it has no list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1 does not have role and content as text"),
        (
            {"messages": [*chat_of("user")["messages"], {"role": "assistant", "content": ""}]},
            "message 2 is an empty response",
        ),
    ],
)
def test_a_wrong_chat_is_named(tmp_path, record, message):
    path = tmp_path / "chats.json"
    path.write_text(as_array([CHAT[0], CHAT[1], record]))
    with pytest.raises(UserError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}, record 3: {message}")


@pytest.mark.parametrize("layout", [as_array, as_lines])
def test_broken_json_is_named_with_its_line(tmp_path, layout):
    path = tmp_path / "broken"
    lines = layout(ALPACA).split("\n")
    lines[2] = lines[2].replace('"', "'")
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        read_conversations(path)
    assert f"{path}, line 3, is broken JSON: " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"text": "x"}', "line 1, has neither messages nor instruction: it has text"),
        (b'{"instruction": "\xff"}', "is not UTF-8 (byte 0xff)"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_conversations(path)
    assert message in str(caught.value)


NUMBER = "1" * 5000  # more digits than Python reads


@pytest.mark.parametrize("content", ["[" * 10**5, f'{{"instruction": {NUMBER}}}'])
def test_json_that_python_cannot_hold_is_refused(tmp_path, content):
    path = tmp_path / "deep.json"
    path.write_text(content)
    with pytest.raises(UserError, match="line 1, is broken JSON"):
        read_conversations(path)


def test_other_files_that_hold_records_are_read_too(tmp_path):
    record = '{"instruction": "a\tb \\ud800", "output": "c"}'
    path = tmp_path / "packed.jsonl.gz"
    path.write_bytes(gzip.compress(record.encode()))
    table = tmp_path / "table.csv"
    table.write_text("instruction,output\na\tb ?,c\n")
    meant = [(Message("user", "a\tb ?"), Message("assistant", "c"))]
    assert [read_conversations(p).found for p in (path, table)] == [meant, meant]

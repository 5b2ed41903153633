"""Reads conversations: records of Alpaca or of a chat, from any file that holds a table.

The first record says which of the two a file is. Every mistake is told with its line or record,
before anything is made of the file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.data.tables import read_table
from gptjax.data.templates import ASSISTANT, USER, Message, conversation_problem

Conversation = tuple[Message, ...]


class Conversations(NamedTuple):
    """What a file holds."""

    template: str
    """The words that are usual around its messages: alpaca or chat."""
    found: list[Conversation]


def read_conversations(path: Path) -> Conversations:
    """Read a file; raises one `UserError` that names the line or the record of the first mistake.

    Alpaca's records have `instruction`, `output` and perhaps `input`, where null is the same as
    none. An output may be empty, as some published ones are: then the end of the text is the
    response. Those of a chat have `messages`, each with `role` and `content`.
    """
    table = read_table(path)
    template, found = "", []
    for row, record in enumerate(table.rows):
        template = template or _template_of(table.where(row), record)
        try:
            found.append(_READERS[template](record))
        except ValueError as problem:
            raise UserError(
                f"{table.where(row)}: {problem}. Correct the record or remove it"
            ) from problem
    return Conversations(template, found)


def _template_of(where: str, record: dict[str, Any]) -> str:
    for template, field in (("chat", "messages"), ("alpaca", "instruction")):
        if field in record:
            return template
    raise UserError(
        f"{where}, has neither messages nor instruction: it has {_fields(record)}. Expected "
        "records with instruction and output, or chats with messages"
    )


def _alpaca(record: dict[str, Any]) -> Conversation:
    """The messages of a record; raises `ValueError` with what is wrong with it."""
    given: dict[str, Any] = {name: record.get(name) for name in ("instruction", "input", "output")}
    given["input"] = "" if given["input"] is None else given["input"]
    for name, value in given.items():
        if value is None:
            raise ValueError(f"it has no {name}: it has {_fields(record)}")
        if not isinstance(value, str):
            raise ValueError(f"{name} is not text: {_short(value)}")
    if not given["instruction"].strip():
        raise ValueError("the instruction is empty")
    asked = Message(USER, given["instruction"], given["input"])
    return asked, Message(ASSISTANT, given["output"])


def _chat(record: dict[str, Any]) -> Conversation:
    """The messages of a record; raises `ValueError` with what is wrong with it."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise ValueError(f"it has no list of messages: it has {_fields(record)}")
    for number, message in enumerate(messages, 1):
        is_message = isinstance(message, dict) and all(
            isinstance(message.get(name), str) for name in ("role", "content")
        )
        if not is_message:
            raise ValueError(
                f"message {number} does not have role and content as text: {_short(message)}"
            )
    found = tuple(Message(message["role"], message["content"]) for message in messages)
    if (problem := conversation_problem(found, ASSISTANT)) is not None:
        raise ValueError(problem)
    return found


_READERS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "alpaca": _alpaca,
    "chat": _chat,
}


def _fields(record: dict[str, Any]) -> str:
    return ", ".join(map(str, record)) or "no fields"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

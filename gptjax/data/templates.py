"""The words around instructions and responses, the same in training, sampling and serving.

A conversation becomes turns: text that the model is given, and text that it is to write. Each turn
is encoded by itself, and end-of-text follows each response, so a prompt has the tokens that the
same prompt had in training. The headers are plain text, for any tokenizer. Text that imitates them
cannot imitate the end of a response.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.tokenizers.plain import Tokenizer

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)


class Message(NamedTuple):
    """A part of a conversation."""

    role: str
    """system, user or assistant."""
    content: str
    input: str = ""
    """What Alpaca gives beside an instruction: the text that it is about."""


class Turn(NamedTuple):
    """A stretch of text, and whether the model is to write it."""

    text: str
    is_response: bool


def turns_of(template: str, messages: Sequence[Message]) -> list[Turn]:
    """The turns of a conversation in a template, `alpaca` or `chat`.

    `conversation_problem` must have found none. If a user has the last word, the last turn is the
    prompt of the response to come.

    >>> turns_of("chat", [Message("user", "Hi!"), Message("assistant", "Hello.")])
    [Turn(text='### User:\\nHi!\\n\\n### Assistant:\\n', is_response=False), \
Turn(text='Hello.', is_response=True)]
    """
    render = {"alpaca": _alpaca_prompt, "chat": _chat_prompt}[template]
    turns, system = [], ""
    for message in messages:
        if message.role == SYSTEM:
            system = message.content
        elif message.role == ASSISTANT:
            turns.append(Turn(message.content, True))
        else:
            turns.append(Turn(render(message, system, is_first=not turns), False))
    return turns


def _alpaca_prompt(message: Message, system: str, is_first: bool) -> str:
    """Alpaca's prompt (Taori et al. 2023).

    Its opening stands once, before the first instruction. Alpaca has no system message: one is put
    before the first instruction, so that the rest of the prompt is as it was in training.
    """
    instruction = message.content
    opening = ""
    if is_first:
        opening = f"{WITH_INPUT if message.input else WITHOUT_INPUT}\n\n"
        instruction = f"{system}\n\n{instruction}" if system else instruction
    about = f"### Input:\n{message.input}\n\n" if message.input else ""
    return f"{opening}### Instruction:\n{instruction}\n\n{about}### Response:\n"


def _chat_prompt(message: Message, system: str, is_first: bool) -> str:
    opening = f"### System:\n{system}\n\n" if is_first and system else ""
    content = f"{message.content}\n\n{message.input}" if message.input else message.content
    return f"{opening}### User:\n{content}\n\n### Assistant:\n"


def conversation_problem(messages: Sequence[Message], last: str) -> str | None:
    """What is wrong with a conversation that role `last` should end; None if it is well formed.

    A system message may come first; then user and assistant alternate, the user first.

    >>> conversation_problem([Message("user", "Hi!")], "assistant")
    'it ends with a message of the user: expected one of the assistant'
    """
    if not messages:
        return "it has no messages"
    expected = USER
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            roles = f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
            return f"message {number} has the role {message.role!r}: expected {roles}"
        if message.role == SYSTEM:
            if number > 1:
                return f"message {number} has the role system, which only the first may have"
        elif message.role != expected:
            return f"message {number} is of the {message.role}: expected one of the {expected}"
        else:
            expected = USER if expected == ASSISTANT else ASSISTANT
        if message.role == ASSISTANT and not message.content.strip():
            return f"message {number} is an empty response"
    if messages[-1].role != last:
        return f"it ends with a message of the {messages[-1].role}: expected one of the {last}"
    return None


def turn_tokens(tokenizer: Tokenizer, turn: Turn) -> np.ndarray:
    """Token ids of one turn, int32; those of a response end with end-of-text."""
    ids = tokenizer.encode(turn.text).astype(np.int32)
    return np.append(ids, np.int32(tokenizer.eot_id)) if turn.is_response else ids


def prompt_tokens(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> np.ndarray:
    """Token ids after which the model writes its response to the last message, int32 [T]."""
    return np.concatenate([turn_tokens(tokenizer, turn) for turn in turns_of(template, messages)])

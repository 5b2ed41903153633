"""The words around conversations, against those of the published files."""

import numpy as np
import pytest

from gptjax.data.templates import (
    Message,
    conversation_problem,
    prompt_tokens,
    turn_tokens,
    turns_of,
)
from gptjax.tokenizers.plain import ByteTokenizer

USER, ANSWER = Message("user", "Add.", "1 2"), Message("assistant", "3")


def test_alpaca_is_the_published_template_with_and_without_input():
    """The two prompts of tatsu-lab/stanford_alpaca, train.py."""
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
    )
    assert turns_of("alpaca", [USER, ANSWER]) == [
        (with_input.format(instruction="Add.", input="1 2") + "\n", False),
        ("3", True),
    ]
    assert turns_of("alpaca", [Message("user", "Hi")]) == [
        (without.format(instruction="Hi") + "\n", False)
    ]


def test_alpaca_opens_a_conversation_once_with_its_system_message():
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Bye"),
    ]
    first, answer, second = turns_of("alpaca", messages)
    assert first.text.startswith("Below is an instruction")
    assert first.text.endswith("\n\n### Instruction:\nBe brief.\n\nHi\n\n### Response:\n")
    assert (answer, second) == (
        ("Yes?", True),
        ("### Instruction:\nBye\n\n### Response:\n", False),
    )


def test_a_chat_has_a_header_for_each_role():
    messages = [Message("system", "Be brief."), USER, ANSWER, Message("user", "Bye")]
    assert turns_of("chat", messages) == [
        ("### System:\nBe brief.\n\n### User:\nAdd.\n\n1 2\n\n### Assistant:\n", False),
        ("3", True),
        ("### User:\nBye\n\n### Assistant:\n", False),
    ]


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_a_prompt_has_the_tokens_that_it_had_in_training(template):
    tokenizer = ByteTokenizer()
    messages = [USER, ANSWER, Message("user", "More?"), Message("assistant", "No.")]
    trained = np.concatenate([turn_tokens(tokenizer, t) for t in turns_of(template, messages)])
    for asked in (1, 3):
        prompt = prompt_tokens(tokenizer, template, messages[:asked])
        np.testing.assert_array_equal(prompt, trained[: len(prompt)])
        response = [*messages[asked].content.encode(), tokenizer.eot_id]
        assert trained[len(prompt) :][: len(response)].tolist() == response


def test_a_prompt_ends_with_the_user():
    assert conversation_problem([USER], "user") is None
    assert conversation_problem([USER, ANSWER], "user") is not None
    assert conversation_problem([USER, ANSWER], "assistant") is None

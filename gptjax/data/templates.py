"""The words around instructions and responses, the same in training, sampling and serving."""

from typing import NamedTuple

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)


class Turn(NamedTuple):
    """A stretch of text, and whether the model is to write it."""

    text: str
    is_response: bool


def alpaca_turns(instruction: str, input: str = "", response: str | None = None) -> list[Turn]:
    """Alpaca's prompt (Taori et al. 2023), and the response if there is one."""
    prompt = f"{WITH_INPUT if input else WITHOUT_INPUT}\n\n### Instruction:\n{instruction}\n\n"
    prompt += f"### Input:\n{input}\n\n" if input else ""
    turns = [Turn(prompt + "### Response:\n", False)]
    return turns if response is None else [*turns, Turn(response, True)]

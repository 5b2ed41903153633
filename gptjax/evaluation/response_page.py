"""Responses as Markdown: each beside its reference, with scores; any text stays as it is."""

import re
from collections.abc import Sequence
from pathlib import Path

from gptjax.base.files import write_atomically
from gptjax.data.templates import USER
from gptjax.evaluation.responses import Response, response_figures

_TILDES = re.compile("~+")


def write_responses(
    path: Path, title: str, responses: Sequence[Response], verdicts: Sequence[str] = ()
) -> None:
    """Write a page under `title`; `verdicts` are what a judge said of each response, if one did."""
    figures = response_figures(responses)
    parts = [
        f"# {title}",
        f"{figures['responses']:,} responses: exact match {figures['exact_match']:.4f}, ROUGE-L "
        f"{figures['rouge_l']:.4f}, {figures['ended']:,} ended by themselves.",
    ]
    for number, response in enumerate(responses, 1):
        parts += [f"## {number}", _scores(response, verdicts[number - 1] if verdicts else "")]
        for message in response.conversation[:-1]:
            name = "Instruction" if message.role == USER else message.role.capitalize()
            parts.append(fenced(name, message.content))
            if message.input:
                parts.append(fenced("Input", message.input))
        parts += [fenced("Reference", response.reference), fenced("Response", response.text)]
    write_atomically(path, ("\n\n".join(parts) + "\n").encode("utf-8", "replace"))


def _scores(response: Response, verdict: str) -> str:
    words = ["exact match" if response.is_exact else f"ROUGE-L {response.rouge_l:.3f}"]
    words.append("ended by itself" if response.ended else "cut off")
    return ", ".join([*words, verdict] if verdict else words)


def fenced(name: str, text: str) -> str:
    r"""A text under its name, in a fence that is longer than any fence in it.

    >>> fenced("Input", "a\n~~~~")
    '**Input**\n\n~~~~~text\na\n~~~~\n~~~~~'
    """
    fence = "~" * max(3, 1 + max(map(len, _TILDES.findall(text)), default=0))
    return f"**{name}**\n\n{fence}text\n{text}\n{fence}"

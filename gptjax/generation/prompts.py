"""Prompts of the command line and of files: one a line, or JSON Lines with other fields beside."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")
WRITTEN = ("run", "text", "finish_reason", "tokens", "seed", "sample", "logprobs")
SHOWN_PROBLEMS = 12


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it comes from."""

    text: str
    place: str = "--prompt"
    """For messages."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What else its line says; it is written beside the text."""


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts: JSON Lines by its name, else a prompt in each line, also empty ones.

    Raises a `UserError` that lists every line that is no prompt, and for a file without any.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--prompts {path} cannot be read: {error.strerror}") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    read = _json_line if path.suffix.lower() in JSON_LINES else _text_line
    prompts: list[Prompt] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            prompts += read(line.removesuffix(b"\r").decode(), f"line {number} of {path}")
        except ValueError as error:
            problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            problems.append(f"line {number}: {problem}")
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        more = [f"... and {rest} more"] if rest > 0 else []
        listed = "".join(f"\n  - {problem}" for problem in [*problems[:SHOWN_PROBLEMS], *more])
        raise UserError(f"--prompts {path} has lines that are no prompts:{listed}")
    if not prompts:
        raise UserError(f"--prompts {path} is empty: expected a prompt in each line")
    return prompts


def _text_line(line: str, place: str) -> list[Prompt]:
    return [Prompt(line, place)]


def _json_line(line: str, place: str) -> list[Prompt]:
    """The prompt of a line; none of a blank one. Raises `ValueError` with what is wrong."""
    if not line.strip():
        return []
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError('expected an object with a text as its field "prompt"')
    if taken := [name for name in WRITTEN if name in row]:
        raise ValueError(f"the output has its own field {', '.join(taken)}: give it another name")
    return [Prompt(row.pop("prompt"), place, row)]

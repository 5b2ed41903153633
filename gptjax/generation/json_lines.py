"""Samples as JSON Lines: one object a sample, and a file that is whole when it has its name."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptjax.generation.continuing import Continued
from gptjax.generation.prompts import Prompt
from gptjax.generation.requests import Token
from gptjax.tokenizers.plain import Tokenizer


def sample_row(sample: Continued, prompt: Prompt, number: int, seed: int) -> dict[str, Any]:
    """A whole sample, the `number`th of its prompt, with the other fields of its prompt's line."""
    return {
        "prompt": prompt.text,
        "text": sample.text,
        "finish_reason": sample.finish,
        "tokens": [token.id for token in sample.tokens],
        "seed": seed,
        "sample": number,
        **prompt.fields,
    }


def token_rows(tokens: Sequence[Token], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each token as text, its log-probability, and the most likely ids with theirs."""
    return [
        {
            "token": tokenizer.decode([token.id]),
            "logprob": token.logprob,
            "top": [
                {"id": other, "token": tokenizer.decode([other]), "logprob": logprob}
                for other, logprob in token.top
            ],
        }
        for token in tokens
    ]


@contextmanager
def json_lines(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes a row at once; to standard output without a path.

    The file is called OUT.part until the block ends without an error.
    """
    if out is None:
        yield lambda row: _write(row, sys.stdout)
        return
    out = out.resolve()  # a link stays one
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8", errors="replace") as file:
        try:
            yield lambda row: _write(row, file)
        except BaseException:
            print(f"the finished texts are in {part}", file=sys.stderr)
            raise
        os.fsync(file.fileno())
    part.replace(out)


def _write(row: dict[str, Any], file: Any) -> None:
    print(json.dumps(row, ensure_ascii=False), file=file, flush=True)

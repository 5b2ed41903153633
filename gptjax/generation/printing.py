"""Samples on a terminal: as they are drawn, two models side by side, a table of probabilities."""

import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from gptjax.generation.continuing import Continued, whole_texts
from gptjax.generation.requests import Token
from gptjax.tokenizers.plain import Tokenizer

NARROWEST = 80  # columns of a terminal that shows two texts side by side
RULE = "---"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def print_while_drawn(
    pieces: Iterable[Continued], prompt: str, count: int, tables: Tokenizer | None
) -> Iterator[Continued]:
    """Print `count` samples of a prompt, `---` between them, and yield each when it is whole.

    With a tokenizer in `tables`, each is followed by the table of its tokens.
    """

    def printed() -> Iterator[Continued]:
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece.text, end="", flush=True)
            if piece.finish is not None:
                print()
            yield piece
            if piece.finish is not None and piece.number + 1 < count:
                print(f"\n{RULE}\n{prompt}", end="", flush=True)

    for whole in whole_texts(printed()):
        if tables is not None:
            print(f"\n{token_table(whole.tokens, tables)}", flush=True)
        yield whole


def token_table(tokens: Sequence[Token], tokenizer: Tokenizer) -> str:
    """Each token with its log-probability, its probability, and the most likely ones with theirs.

    Probabilities are the model's: before the temperature, the penalty and the filters.
    """
    rows = [("token", "logprob", "probability", "most likely")]
    for token in tokens:
        others = "  ".join(
            f"{token_text(tokenizer, other)} {math.exp(logprob):.1%}"
            for other, logprob in token.top
        )
        rows.append(
            (
                token_text(tokenizer, token.id),
                f"{token.logprob:.4f}",
                f"{math.exp(token.logprob):.2%}",
                others,
            )
        )
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    return "\n".join(
        f"{a:<{first}}  {b:>{second}}  {c:>{third}}  {others}".rstrip() for a, b, c, others in rows
    )


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token in quotes; bytes that are no text alone are written as \\xE2, end-of-text as such."""
    if token == tokenizer.eot_id:
        return "end-of-text"
    return repr(tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")).replace(
        "\\\\x", "\\x"
    )


def print_side_by_side(names: Sequence[str], texts: Sequence[str], title: str) -> None:
    """Print two texts in columns if standard output is a terminal that is wide enough.

    Else they come one after the other, each under its name.
    """
    width = shutil.get_terminal_size().columns
    print(title)
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None if a shell has closed it
    if not is_terminal or width < NARROWEST:
        for name, text in zip(names, texts, strict=True):
            print(f"== {name}\n{text}\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, width=width, header_style="none")
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    # as `Text` nothing in them is markup; control characters would break the columns
    table.add_row(*(Text(_CONTROL.sub("\ufffd", text.expandtabs(4))) for text in texts))
    Console(force_jupyter=False, highlight=False).print(table)

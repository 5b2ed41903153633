"""What becomes of the samples of a command: printed as they come, side by side, or JSON Lines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gptjax.base.terminal import count_bar
from gptjax.generation.continuing import Continued, whole_texts
from gptjax.generation.json_lines import json_lines, sample_row, token_rows
from gptjax.generation.options import GenerateCommand
from gptjax.generation.printing import print_side_by_side, print_while_drawn, token_table
from gptjax.generation.prompts import Prompt
from gptjax.tokenizers.plain import Tokenizer

Show = Callable[[str, Tokenizer, Iterable[Continued], str], Iterator[Continued]]
"""Shows the samples that a model draws, and yields each when it is whole. The last argument stands
between a prompt and its text."""


@contextmanager
def shown_as(command: GenerateCommand, prompts: Sequence[Prompt]) -> Iterator[Show]:
    """The way in which a command shows its samples; what needs all of them comes at the end."""
    if command.compare is not None and command.out is None:
        texts: dict[str, list[str]] = {}
        yield _collected(command, len(prompts), texts)
        columns = zip(*texts.values(), strict=True)
        for number, pair in enumerate(columns):
            line, sample = divmod(number, command.num_samples)
            title = f"{prompts[line].place}, sample {sample}"
            whole = [prompts[line].text + text for text in pair]
            print_side_by_side(command.compare, whole, title)
    elif command.prompts is not None:
        with json_lines(command.out) as write:
            yield _written(command, prompts, write)
    else:
        yield _printed(command)


def _printed(command: GenerateCommand) -> Show:
    def show(
        _: str, tokenizer: Tokenizer, pieces: Iterable[Continued], between: str
    ) -> Iterator[Continued]:
        tables = tokenizer if command.logprobs else None
        return print_while_drawn(pieces, command.prompt + between, command.num_samples, tables)

    return show


def _written(
    command: GenerateCommand, prompts: Sequence[Prompt], write: Callable[[dict[str, Any]], None]
) -> Show:
    def show(
        name: str, tokenizer: Tokenizer, pieces: Iterable[Continued], _: str
    ) -> Iterator[Continued]:
        with count_bar(len(prompts) * command.num_samples, "samples") as advance:
            for whole in whole_texts(pieces):
                line, sample = divmod(whole.number, command.num_samples)
                row = sample_row(whole, prompts[line], sample, command.seed)
                if command.compare is not None:
                    row["run"] = name
                if command.logprobs:
                    row["logprobs"] = token_rows(whole.tokens, tokenizer)
                write(row)
                advance(1)
                yield whole

    return show


def _collected(command: GenerateCommand, count: int, texts: dict[str, list[str]]) -> Show:
    def show(
        name: str, tokenizer: Tokenizer, pieces: Iterable[Continued], between: str
    ) -> Iterator[Continued]:
        own = texts.setdefault(f"{len(texts)} {name}", [])  # a run may be compared with itself
        with count_bar(count * command.num_samples, "samples") as advance:
            for whole in whole_texts(pieces):
                table = f"\n\n{token_table(whole.tokens, tokenizer)}" if command.logprobs else ""
                own.append(between + whole.text + table)
                advance(1)
                yield whole

    return show

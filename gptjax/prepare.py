"""Prepare text: `python -m gptjax.prepare --input a.txt b.txt --tokenizer gpt2 --out DIR`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptjax.cli import main, parse
from gptjax.config import Config
from gptjax.errors import ConfigError, UserError
from gptjax.presets import load_preset
from gptjax.validation import validate


@dataclass(frozen=True)
class PrepareCommand:
    """Turn text into token shards with a manifest; flags override what the config says."""

    config: str | None = None
    """Name or path of a config whose data is to be prepared."""
    input: tuple[str, ...] = ()
    """Files, directories and patterns, or - for standard input: UTF-8 text, JSON lines (.jsonl),
    Parquet (.parquet), each also compressed (.gz, .zst)."""
    format: Literal["auto", "text", "jsonl", "parquet"] | None = None
    """What the inputs are; by default the ends of their names say it, and the rest is text."""
    text_field: str | None = None
    """Field of JSON lines, or column of Parquet, that holds the text; the default is text."""
    doc_separator: str | None = None
    """What stands between the documents of a text file, such as '<|endoftext|>' or '\\n\\n'; by
    default a file is one document."""
    tokenizer: str | None = None
    """gpt2, bytes, chars (those of this text), or bpe:N (a BPE of N tokens trained on this text);
    the default is bytes."""
    out: Path | None = None
    """Directory to make."""
    val_fraction: float | None = None
    """Share of the text held out for validation (0 to 0.5); the default is 0.05."""
    workers: int | None = None
    """Cores to use, all by default; the result is the same."""
    partition: str | None = None
    """i/n: tokenise only share i (from 0) of n, as one job of an array; then --merge."""
    merge: bool = False
    """Put together what all partitions have made; the result is that of one machine."""


def prepare(argv: Sequence[str]) -> int:
    """Parse, prepare, and say what came of it."""
    command = parse(PrepareCommand, argv, "python -m gptjax.prepare")
    config = load_preset(command.config) if command.config else Config()
    given = {
        "path": None if command.out is None else str(command.out),
        "inputs": command.input or None,
        "input_format": command.format,
        "text_field": command.text_field,
        "doc_separator": command.doc_separator,
        "tokenizer": command.tokenizer,
        "val_fraction": command.val_fraction,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    data = dataclasses.replace(config.data, **changes)
    if command.config is None:
        missing = [f for f, v in (("--input", command.input), ("--out", command.out)) if not v]
        if missing:
            raise ConfigError(
                [
                    f"{' and '.join(missing)} missing: give --config NAME, or --input "
                    "FILE... --tokenizer gpt2|bytes|chars --out DIR"
                ]
            )
    validate(dataclasses.replace(config, data=data))
    if command.workers is not None and command.workers < 1:
        raise ConfigError([f"--workers must be at least 1, not {command.workers}"])
    if data.doc_separator == "":
        raise ConfigError(["--doc-separator must not be empty"])
    if not data.inputs and data.source is None:
        raise UserError(
            f"config {command.config} has no text of its own: give text files with --input FILE..."
        )

    from gptjax.data.partition import Partition
    from gptjax.data.preparation import prepare_with_progress

    partition = Partition.parse(command.partition) if command.partition else None
    if partition and command.merge:
        raise ConfigError(["--partition and --merge are two steps: first every partition, then"])
    prepare_with_progress(data, command.workers, partition, command.merge)
    return 0


if __name__ == "__main__":
    main(prepare)

"""Prepare text: `python -m gptjax.prepare --input a.txt b.txt --tokenizer gpt2 --out DIR`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptjax.base.errors import ConfigError, UserError
from gptjax.cli import main, parse
from gptjax.config import Config, DataConfig
from gptjax.config.batches import batch_schedule
from gptjax.config.names import is_tokenizer_name
from gptjax.config.presets import load_config
from gptjax.config.validation import validate


@dataclass(frozen=True)
class PrepareCommand:
    """Turn text into token shards with a manifest; flags override what the config says."""

    config: str | None = None
    """Name or path of a config whose data is to be prepared."""
    input: tuple[str, ...] = ()
    """Files, directories and patterns, or - for standard input: UTF-8 text, JSON lines (.jsonl),
    Parquet (.parquet), each also compressed (.gz, .zst)."""
    hub: str | None = None
    """Data set of the Hugging Face hub: OWNER/NAME, OWNER/NAME:SUBSET or OWNER/NAME:SUBSET:SPLIT
    (train, unless it says another), with @REVISION after NAME or not. Ready token files of llm.c's
    format are fetched, text is streamed."""
    tokens: int | None = None
    """Tokens to train on, of ready token files: only as many files as hold them are fetched. By
    default those that the config's run reads, and without --config all."""
    format: Literal["auto", "text", "jsonl", "parquet"] | None = None
    """What the inputs are; by default the ends of their names say it, and the rest is text."""
    text_field: str | None = None
    """Field of JSON lines, or column of Parquet, that holds the text; the default is text."""
    doc_separator: str | None = None
    """What stands between the documents of a text file, such as '<|endoftext|>' or '\\n\\n'; by
    default a file is one document."""
    tokenizer: str | None = None
    """gpt2, gpt1, bytes, chars (those of this text), bpe:N (a BPE of N tokens trained on it),
    tiktoken:ENCODING, or a tokenizer's JSON file; the default is bytes."""
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
    adopt: Path | None = None
    """Directory of token files of llm.c, modded-nanogpt (.bin), nanoGPT (.bin without a header) or
    build-nanogpt (.npy): they stay where they are, and --out (or it) gets a manifest."""
    inspect: Path | None = None
    """Prepared directory to verify and describe; nothing is prepared."""
    train_tokenizer: bool = False
    """Only train a byte-level BPE on the text and write it to --out, a JSON file."""
    vocab_size: int = 4096
    """Tokens of the BPE that --train-tokenizer makes, end-of-text included (257 or more)."""


def prepare(argv: Sequence[str]) -> int:
    """Parse, prepare, and say what came of it."""
    command = parse(PrepareCommand, argv, "python -m gptjax.prepare")
    _refuse_what_is_not_read(command)
    if command.inspect is not None:
        from gptjax.preparation.inspection import inspect_with_report

        inspect_with_report(command.inspect)
        return 0
    if command.adopt is not None:
        return _adopt(command.adopt, command)
    config = load_config(command.config) if command.config else Config()
    data = _data(command, config)
    _check(command, dataclasses.replace(config, data=data))
    if not data.inputs and data.source is None and data.hub is None:
        raise UserError(
            f"config {command.config} has no text of its own: give text files with --input FILE..."
        )
    if command.train_tokenizer:
        return _train_tokenizer(command, data)
    if data.hub is not None:
        from gptjax.preparation.fetching import prepare_from_hub

        rows = batch_schedule(config).rows_before(config.train.max_steps)
        read = rows * config.context + 1 if command.config else None
        prepare_from_hub(data, command.tokens, read, command.workers)
        return 0

    from gptjax.preparation.pipeline import prepare_with_progress
    from gptjax.preparation.units import Partition

    partition = Partition.parse(command.partition) if command.partition else None
    prepare_with_progress(data, command.workers, partition, command.merge)
    return 0


def _data(command: PrepareCommand, config: Config) -> DataConfig:
    """The config's data as the flags have it; another text takes the place of its own."""
    data = config.data
    if command.input or command.hub:
        data = dataclasses.replace(data, source=None, inputs=(), hub=None)
    given = {
        "path": None if command.out is None else str(command.out),
        "inputs": command.input or None,
        "hub": command.hub,
        "input_format": command.format,
        "text_field": command.text_field,
        "doc_separator": command.doc_separator,
        "tokenizer": command.tokenizer,
        "val_fraction": command.val_fraction,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(data, **changes)


def _check(command: PrepareCommand, config: Config) -> None:
    """Raise one `ConfigError` with everything that cannot work, or not together."""
    data, text = config.data, command.input or command.hub
    missing = [f for f, v in (("--input", text), ("--out", command.out)) if not v]
    rules = [
        (
            command.config is None and bool(missing),
            f"{' and '.join(missing)} missing: give --config NAME, or --input FILE... (or --hub "
            "OWNER/NAME) --tokenizer gpt2|bytes|chars --out DIR",
        ),
        (
            bool(command.input and command.hub),
            "--input and --hub are two sources of the same data: give one of them",
        ),
        (
            command.workers is not None and command.workers < 1,
            f"--workers must be at least 1, not {command.workers}",
        ),
        (data.doc_separator == "", "--doc-separator must not be empty"),
        (
            command.tokens is not None and (data.hub is None or command.tokens < 1),
            f"--tokens {command.tokens} must be 1 or more, and is for --hub alone",
        ),
        (
            bool(command.partition and command.merge),
            "--partition and --merge are two steps: leave out one of them",
        ),
        (
            data.hub is not None and bool(command.partition or command.merge),
            "--partition and --merge are for files, and a data set of the hub is one stream: "
            "prepare it on one machine, or download its files and give them by --input",
        ),
        (
            data.hub is not None and bool(command.format or command.doc_separator),
            "--format and --doc-separator are for files: --hub knows its records",
        ),
    ]
    problems = [message for bad, message in rules if bad]
    try:
        validate(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def _refuse_what_is_not_read(command: PrepareCommand) -> None:
    """Raise `ConfigError` for flags that --inspect and --adopt would pass over."""
    for verb, read in (("inspect", ()), ("adopt", ("tokenizer", "out"))):
        others = [
            "--" + field.name.replace("_", "-")
            for field in dataclasses.fields(command)
            if getattr(command, field.name) != field.default and field.name not in (verb, *read)
        ]
        if getattr(command, verb) is not None and others:
            raise ConfigError([f"--{verb} does not read {', '.join(others)}: leave that out"])


def _adopt(directory: Path, command: PrepareCommand) -> int:
    if command.tokenizer is None or not is_tokenizer_name(command.tokenizer):
        raise ConfigError(
            [
                "--adopt needs the --tokenizer that made the files (gpt2, or tiktoken:ENCODING, or "
                f"a tokenizer's JSON file), not {command.tokenizer}"
            ]
        )

    from gptjax.preparation.adoption import adopt_with_progress

    adopt_with_progress(directory, command.tokenizer, command.out or directory)
    return 0


def _train_tokenizer(command: PrepareCommand, data: DataConfig) -> int:
    if command.out is None or not is_tokenizer_name(f"bpe:{command.vocab_size}"):
        raise ConfigError(
            [
                "--train-tokenizer needs --out FILE.json and a --vocab-size of 257 or more, not "
                f"{command.out} and {command.vocab_size}"
            ]
        )
    if command.partition or command.merge:
        raise ConfigError(["--train-tokenizer reads all text at once: leave out --partition"])

    from gptjax.preparation.sources import find_inputs
    from gptjax.preparation.vocabulary import train_tokenizer_with_report

    train_tokenizer_with_report(find_inputs(data), command.vocab_size, command.out)
    return 0


if __name__ == "__main__":
    main(prepare)

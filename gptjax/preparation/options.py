"""The flags of `prepare`, and combinations of them that are refused."""

import dataclasses
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config, DataConfig
from gptjax.config.names import is_tokenizer_name
from gptjax.config.origins import flag_of
from gptjax.config.validation import validate
from gptjax.data.shards import MOST_SHARD_TOKENS

TOKENIZER_FORM = "gpt2, gpt1, bytes, tiktoken:ENCODING or a tokenizer's JSON file"


@dataclass(frozen=True)
class PrepareCommand:
    """Turn text into token shards with a manifest; flags override the config."""

    config: str | None = None
    """Name or path of the config whose data to prepare."""
    input: tuple[str, ...] = ()
    """Files, directories and patterns, or - for standard input: text (UTF-8, or UTF-16 or UTF-32
    with a byte-order mark), JSON (lines or arrays), CSV, TSV or Parquet, each also compressed
    (gzip, zstd)."""
    hub: str | None = None
    """Data set of the Hugging Face hub: OWNER/NAME, OWNER/NAME:SUBSET or OWNER/NAME:SUBSET:SPLIT
    (the default is train); @REVISION may follow NAME. Ready token files in llm.c's format are
    fetched; text is streamed."""
    tokens: int | None = None
    """Training tokens to fetch, if the hub has ready token files: only as many files as hold them.
    The default is the number that the config's run reads, or all without --config."""
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] | None = None
    """Format of the inputs; the default, auto, recognises each file by its content. json is lines
    or arrays; the delimiter of csv is detected."""
    text_field: str | None = None
    """Field of JSON, or column of CSV, TSV or Parquet, that holds the text; the default is text, or
    else the only field of strings."""
    doc_separator: str | None = None
    """Separator between the documents of a text file, such as '<|endoftext|>' or '\\n\\n'; by
    default a file is one document."""
    tokenizer: str | None = None
    """gpt2, gpt1, bytes, chars (those of this text), bpe:N (a BPE of N tokens trained on it),
    tiktoken:ENCODING, or a tokenizer's JSON file; the default is bytes."""
    out: Path | None = None
    """Directory to create."""
    val_fraction: float | None = None
    """Share of the text held out for validation (0 to 0.5); the default is 0.05."""
    shard_tokens: int | None = None
    """Tokens in a shard; the last shard of a split has up to twice as many. The default is 2^20.
    Readers of other trainers need one batch of all processes, plus one token, in every shard."""
    workers: int | None = None
    """Number of cores to use; the default is all. The result is the same."""
    partition: str | None = None
    """i/n: tokenise only part i (from 0) of n, as one job of an array; then --merge."""
    merge: bool = False
    """Join the results of all partitions; the output is the same as from one machine."""
    adopt: Path | None = None
    """Directory of token files of llm.c, modded-nanogpt (.bin), nanoGPT (.bin without a header,
    with meta.pkl for characters) or build-nanogpt (.npy). The files stay where they are. --out, or
    the directory itself, gets a manifest; with --shard-tokens, --out also gets copies."""
    inspect: Path | None = None
    """Prepared directory to verify and describe; nothing is prepared."""
    train_tokenizer: bool = False
    """Only train a byte-level BPE on the text and write it to --out, a JSON file."""
    vocab_size: int | None = None
    """Vocabulary of --train-tokenizer, end-of-text included (257 or more); the default is 4096."""


def data_of(command: PrepareCommand, config: Config) -> DataConfig:
    """The config's data, overridden by the flags; another text replaces the config's own."""
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


def check(command: PrepareCommand, config: Config) -> None:
    """Raise one `ConfigError` with every bad value and every combination that cannot work."""
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
        _shard_size(command),
        (data.doc_separator == "", "--doc-separator must not be empty"),
        (data.text_field == "", "--text-field must not be empty"),
        (
            command.tokens is not None and (data.hub is None or command.tokens < 1),
            f"--tokens {command.tokens} must be 1 or more, and works only with --hub",
        ),
        (
            bool(command.partition and command.merge),
            "--partition and --merge are two steps: leave out one of them",
        ),
        (
            bool(command.partition and command.shard_tokens),
            "--shard-tokens belongs to --merge, which writes the shards: leave it out here",
        ),
        (
            command.merge and (needs_text(data.tokenizer or "bytes") or "-" in data.inputs),
            "--merge joins the results of --partition, which takes neither standard input nor a "
            "tokenizer made from the text: leave it out",
        ),
        (
            data.hub is not None and bool(command.partition or command.merge),
            "--partition and --merge work with files, but a data set of the hub is one stream: "
            "prepare it on one machine, or download its files and pass them to --input",
        ),
        (
            data.hub is not None and bool(command.format or command.doc_separator),
            "--format and --doc-separator work with files, not with --hub: leave them out",
        ),
        (
            command.vocab_size is not None and not command.train_tokenizer,
            "--vocab-size works only with --train-tokenizer: to train a BPE while preparing, "
            "give --tokenizer bpe:N",
        ),
    ]
    problems = [message for bad, message in rules if bad]
    if data.hub is None and data.input_format != "auto":
        problems += unread_fields(data, {data.input_format})
    try:
        validate(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    if not data.inputs and data.source is None and data.hub is None:
        raise UserError(
            f"config {command.config} has no text of its own: give text files with --input FILE..."
        )


def _shard_size(command: PrepareCommand) -> tuple[bool, str]:
    """Whether --shard-tokens is out of range, and the message."""
    size = command.shard_tokens
    bad = size is not None and not 1 <= size <= MOST_SHARD_TOKENS
    return bad, f"--shard-tokens must be 1 to 2**30, not {size}"


def flags_given(command: PrepareCommand, fields: Iterable[str]) -> list[str]:
    """The flags of those `fields` that do not have their default."""
    defaults = PrepareCommand()
    return [flag_of(f) for f in fields if getattr(command, f) != getattr(defaults, f)]


def refuse_unread_flags(command: PrepareCommand) -> None:
    """Raise `ConfigError` for flags that --inspect, --adopt or --train-tokenizer would ignore."""
    text = ("config", "input", "hub", "format", "text_field", "doc_separator", "out", "vocab_size")
    verbs = {
        "inspect": (),
        "adopt": ("tokenizer", "out", "shard_tokens"),
        "train_tokenizer": text,
    }
    names = [field.name for field in dataclasses.fields(command)]
    for verb, read in verbs.items():
        others = flags_given(command, [n for n in names if n not in (verb, *read)])
        if getattr(command, verb) and others:
            raise ConfigError(
                [f"{flag_of(verb)} does not read {', '.join(others)}: leave that out"]
            )


def check_adoption(command: PrepareCommand) -> None:
    """Raise `ConfigError` for values that adoption cannot take."""
    name, size = command.tokenizer, command.shard_tokens
    problems = []
    if name is not None and not is_tokenizer_name(name):
        problems.append(f"--tokenizer must be {TOKENIZER_FORM}, not {name!r}")
    bad, message = _shard_size(command)
    problems += [message] if bad else []
    if size is not None and command.out in (None, command.adopt):
        problems.append("--adopt with --shard-tokens writes new shards: give --out another DIR")
    if problems:
        raise ConfigError(problems)


def check_vocabulary(command: PrepareCommand) -> tuple[Path, int]:
    """File and size of the tokenizer to train; raises `ConfigError` if they are invalid."""
    size = 4096 if command.vocab_size is None else command.vocab_size
    if command.out is None or not is_tokenizer_name(f"bpe:{size}"):
        raise ConfigError(
            [
                "--train-tokenizer needs --out FILE.json and a --vocab-size of 257 or more, not "
                f"{command.out} and {size}"
            ]
        )
    return command.out, size


def needs_text(tokenizer: str) -> bool:
    """Whether a tokenizer is made from the text that it tokenises."""
    return tokenizer == "chars" or tokenizer.startswith("bpe:")


def unread_fields(data: DataConfig, kinds: Set[str]) -> list[str]:
    """A message for every field of `data` that has no effect on inputs of these `kinds`."""
    problems = []
    if data.doc_separator is not None and "text" not in kinds:
        problems.append(
            f"--doc-separator (data.doc_separator) works only with text, but all input is "
            f"{' and '.join(sorted(kinds))}, whose records are the documents: leave it out"
        )
    if data.text_field not in (None, "text") and kinds == {"text"}:
        problems.append(
            f"--text-field (data.text_field) {data.text_field} works only with records, but all "
            "input is text: leave it out, or name the format by --format"
        )
    return problems

"""Finds a tokenizer by its name or its JSON file.

Every prepared data set carries its tokenizer as one JSON file, so training and generating never
need the network; the file's fingerprint ties shards, tokenizer and checkpoints together.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError, did_you_mean
from gptjax.config.names import is_tokenizer_name
from gptjax.tokenizers.bpe import bpe_from_table, gpt2, tiktoken_encoding
from gptjax.tokenizers.gpt1 import GPT1Tokenizer, gpt1, gpt1_from_table
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer, Tokenizer

# tokenizers made from their name alone
NAMED: dict[str, Callable[[], Tokenizer]] = {"bytes": ByteTokenizer, "gpt1": gpt1, "gpt2": gpt2}


def document_separator(tokenizer: Tokenizer) -> int:
    """The id that ends documents and has no other meaning.

    Raises `UserError` for GPT-1's vocabulary, which has no such id.
    """
    if isinstance(tokenizer, GPT1Tokenizer):
        raise UserError(
            "data.document_mask needs to see where documents end, but gpt1 ends them with <unk>, "
            "which also stands for unknown characters: turn the mask off, or choose another "
            "tokenizer"
        )
    return tokenizer.eot_id


def fingerprint(tokenizer: Tokenizer) -> str:
    """First 16 hexadecimal digits of the sha256 of everything that decides the ids.

    The name is left out: two tokenizers with the same table are the same tokenizer.
    """
    table = json.loads(tokenizer.to_json())
    if "tokens" in table:
        table.pop("name")
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


def make_tokenizer(name: str) -> Tokenizer:
    """Make a tokenizer from its name or its JSON file.

    Raises `UserError` if there is no such tokenizer, if its files are missing, and for `chars` and
    `bpe:N`, which need a text.

    >>> make_tokenizer("bytes").encode("hé").tolist()
    [104, 195, 169]
    """
    kind, _, encoding = name.partition(":")
    if name in NAMED:
        return NAMED[name]()
    if kind == "tiktoken" and encoding:
        return tiktoken_encoding(encoding)
    if name.endswith(".json"):
        return read_tokenizer_file(Path(name))
    if is_tokenizer_name(name):
        raise UserError(
            f"tokenizer {name} is made from a text, and there is none here: give the JSON file of "
            "the tokenizer that made the tokens, such as tokenizer.json of prepared data"
        )
    known = [*NAMED, "chars", "bpe:4096", "tiktoken:cl100k_base"]
    raise UserError(
        f"unknown tokenizer {name!r}{did_you_mean(name, known)}: expected {', '.join(NAMED)}, "
        "chars, bpe:N with N of 257 or more, tiktoken:ENCODING or the path of a .json file"
    )


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Read a tokenizer's JSON; raises a `UserError` that names the file."""
    try:
        return tokenizer_from_json(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as a tokenizer ({error}): give the JSON file that "
            "python -m gptjax.prepare --train-tokenizer wrote, or the tokenizer.json of a "
            "prepared directory"
        ) from error


def tokenizer_identity(name: str) -> str:
    """The name itself; for a JSON file its fingerprint, because files change and move."""
    return fingerprint(make_tokenizer(name)) if name.endswith(".json") else name


def tokenizer_from_json(text: str, name: str) -> Tokenizer:
    """Make a tokenizer from its JSON; the error message calls it `name`."""
    try:
        table: dict[str, Any] = json.loads(text)
        if table["name"] == "bytes":
            return ByteTokenizer()
        if table["name"] == "chars":
            return CharTokenizer(table["alphabet"])
        if "merges" in table:
            return gpt1_from_table(table)
        return bpe_from_table(table)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{name} is not a tokenizer file: {type(error).__name__} {error}"
        ) from error


def bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """Length of every token in bytes, [V] int32; 0 for end-of-text.

    >>> bytes_per_token(make_tokenizer("bytes"))[[65, 256]].tolist()
    [1, 0]
    """
    lengths = [len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_vocab)]
    return np.array(lengths, dtype=np.int32)

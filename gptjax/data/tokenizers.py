"""Tokenizers behind one protocol: bytes, characters, GPT-2's BPE, and a BPE trained on the corpus.

Every prepared data set carries its tokenizer as one JSON file, so training and generating never
need the network; the file's fingerprint ties shards, tokenizer and checkpoints together. BPEs run
through tiktoken.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptjax.errors import UserError, did_you_mean

EOT = "<|endoftext|>"
# GPT-2's pre-tokenisation (Radford et al. 2019, section 2.2; published with the model).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_FILES = ("vocab.bpe", "encoder.json")
GPT2_VOCAB = 50257


class Tokenizer(Protocol):
    """What the rest of gptjax asks of a tokenizer."""

    name: str
    n_vocab: int
    eot_id: int

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`; the name of a special token in it is ordinary text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; none for end-of-text."""
        ...

    def to_json(self) -> str:
        """Everything needed to make this tokenizer again."""
        ...


class ByteTokenizer:
    """256 bytes and end-of-text: needs nothing and never fails."""

    name = "bytes"
    n_vocab = 257
    eot_id = 256

    def encode(self, text: str) -> np.ndarray:
        """UTF-8 bytes of the text."""
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes, end-of-text left out."""
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token]) if token < 256 else b""

    def to_json(self) -> str:
        """The name says all."""
        return json.dumps({"name": self.name})


class CharTokenizer:
    """The characters of one corpus in the order of their code points, then end-of-text."""

    name = "chars"

    def __init__(self, alphabet: str):
        self.alphabet = "".join(sorted(set(alphabet)))
        self.eot_id = len(self.alphabet)
        self.n_vocab = len(self.alphabet) + 1
        self._codes = _code_points(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        """Places in the alphabet; raises `UserError` at a character that is not in it."""
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = self._codes[np.minimum(ids, len(self._codes) - 1)] == codes
        if not known.all():
            stranger = chr(codes[np.argmin(known)])
            raise UserError(
                f"{stranger!r} is none of the {len(self.alphabet)} characters of the text that "
                f"this chars tokenizer was made from: {self.alphabet!r}"
            )
        return ids.astype(np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, end-of-text left out."""
        return "".join(self.alphabet[i] for i in ids if i < self.eot_id)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of the character."""
        return self.alphabet[token : token + 1].encode()

    def to_json(self) -> str:
        """The alphabet."""
        return json.dumps({"name": self.name, "alphabet": self.alphabet})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(_utf8(text).decode().encode("utf-32-le"), dtype="<u4")


class BPETokenizer:
    """A byte-level BPE given by its ranks, run by tiktoken; end-of-text is the last id.

    Shipped as `gpt2` (50257 ids) or trained as `bpe:N` (N ids, end-of-text included).
    """

    def __init__(self, name: str, ranks: dict[bytes, int], pattern: str = GPT2_PATTERN):
        import tiktoken

        self.name, self.ranks, self.pattern = name, ranks, pattern
        self.eot_id = len(ranks)
        self.n_vocab = len(ranks) + 1
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOT: self.eot_id}
        )

    def encode(self, text: str) -> np.ndarray:
        """BPE ids of the text."""
        return self._encoding.encode_to_numpy(_utf8(text).decode(), disallowed_special=())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, end-of-text left out."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id."""
        return self._bytes_of_id[token]

    def to_json(self) -> str:
        """Pattern and base64 ranks, in rank order."""
        ordered = sorted(self.ranks, key=self.ranks.__getitem__)
        tokens = [base64.b64encode(token).decode() for token in ordered]
        return json.dumps({"name": self.name, "pattern": self.pattern, "tokens": tokens})

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        return [*sorted(self.ranks, key=self.ranks.__getitem__), b""]


def _utf8(text: str) -> bytes:
    """UTF-8 of any Python string; halves of surrogate pairs, which have none, become `?`."""
    return text.encode("utf-8", "replace")


def fingerprint(tokenizer: Tokenizer) -> str:
    """First 16 hexadecimal digits of the sha256 of everything that decides the ids.

    The name is left out: two tokenizers with the same table are the same tokenizer.
    """
    table = json.loads(tokenizer.to_json())
    if "tokens" in table:
        table.pop("name")
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


def make_tokenizer(name: str) -> Tokenizer:
    """Make `bytes` or `gpt2`; `chars` and `bpe:N` exist only beside data they were made from."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return gpt2()
    known = ["bytes", "chars", "gpt2", "bpe:4096"]
    raise UserError(
        f"unknown tokenizer {name!r}{did_you_mean(name, known)}: expected bytes, chars, gpt2 "
        "or bpe:N with N of 257 or more"
    )


def gpt2(files: Path | None = None) -> BPETokenizer:
    """GPT-2's 50257-token BPE, from files where there are any, else through tiktoken.

    `files` (or the directory GPTJAX_GPT2_BPE names) holds OpenAI's vocab.bpe and encoder.json. Else
    tiktoken's own way: its cache in TIKTOKEN_CACHE_DIR, or a download. Raises `UserError` where
    neither works.
    """
    directory = files or (Path(d) if (d := os.environ.get("GPTJAX_GPT2_BPE")) else None)
    if directory is not None:
        return BPETokenizer("gpt2", _gpt2_ranks_from_files(directory))
    import requests
    from tiktoken_ext import openai_public

    try:
        # tiktoken deletes a cached file whose hash is wrong; where that is not allowed it raises
        # OSError, which to the user is the same thing as having no file
        ranks = openai_public.gpt2()["mergeable_ranks"]
    except (requests.RequestException, OSError, ValueError) as error:
        raise UserError(
            "the gpt2 tokenizer's files are neither cached nor to be downloaded from here. Either "
            "set TIKTOKEN_CACHE_DIR to a directory that tiktoken filled on a machine with a "
            f"network, or set GPTJAX_GPT2_BPE to a directory with OpenAI's {GPT2_FILES[0]} and "
            f"{GPT2_FILES[1]}. ({type(error).__name__})"
        ) from error
    return BPETokenizer("gpt2", ranks)


def _gpt2_ranks_from_files(directory: Path) -> dict[bytes, int]:
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    paths = [directory / name for name in GPT2_FILES]
    if missing := [str(p) for p in paths if not p.is_file()]:
        raise UserError(
            f"the gpt2 tokenizer needs {' and '.join(missing)}: OpenAI's files of the GPT-2 release"
        )
    try:
        with _no_tiktoken_cache():
            ranks = data_gym_to_mergeable_bpe_ranks(str(paths[0]), str(paths[1]))
    except Exception as error:
        raise UserError(
            f"{paths[0]} and {paths[1]} are not OpenAI's GPT-2 files: {error}"
        ) from error
    if len(ranks) != GPT2_VOCAB - 1:
        raise UserError(f"{paths[0]} has {len(ranks)} tokens, expected {GPT2_VOCAB - 1}")
    return ranks


@contextmanager
def _no_tiktoken_cache() -> Iterator[None]:
    """Keep tiktoken from caching files under their path's name: it would read those ever after."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def train_bpe(texts: Iterable[str], n_vocab: int) -> BPETokenizer:
    """Train a byte-level BPE of `n_vocab` ids, end-of-text included, with GPT-2's pre-tokenisation.

    Sennrich et al. (2016) over bytes. Deterministic for the same texts in the same order. Raises
    `UserError` where the text has too few pairs to merge.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    # texts are pieces of 1 MiB: its default of 8192 of them at once would be the whole corpus
    trainer.train_from_iterator(iter(texts), n_vocab - 1, buffer_size=8, pattern=GPT2_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < n_vocab - 1:
        raise UserError(
            f"the text gives a BPE of {len(ranks) + 1} tokens at most, not {n_vocab}: "
            f"ask for bpe:{len(ranks) + 1}, or for bytes"
        )
    return BPETokenizer(f"bpe:{n_vocab}", ranks)


def collect_characters(texts: Iterable[str]) -> CharTokenizer:
    """Make the tokenizer of all characters in `texts`; raises `UserError` where there are none."""
    alphabet = set[str]().union(*(_utf8(text).decode() for text in texts))
    if not alphabet:
        raise UserError("the text is empty: there are no characters to make a tokenizer of")
    return CharTokenizer("".join(alphabet))


def from_json(text: str, name: str) -> Tokenizer:
    """Make a tokenizer again from its JSON; `name` is the file, for the error message."""
    try:
        table: dict[str, Any] = json.loads(text)
        if table["name"] == "bytes":
            return ByteTokenizer()
        if table["name"] == "chars":
            return CharTokenizer(table["alphabet"])
        ranks = {base64.b64decode(token): i for i, token in enumerate(table["tokens"])}
        if not all(bytes([b]) in ranks for b in range(256)):
            raise ValueError("not every byte has a token")
        return BPETokenizer(table["name"], ranks, table["pattern"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{name} is not a tokenizer file: {type(error).__name__} {error}"
        ) from error


def bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """Length in bytes of every id, [V] int32; end-of-text counts nothing."""
    lengths = [len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_vocab)]
    return np.array(lengths, dtype=np.int32)

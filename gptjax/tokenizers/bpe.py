"""Byte-level BPEs, all run by tiktoken: GPT-2's, any of tiktoken's, or one trained on the corpus.

OpenAI's encodings come through tiktoken's cache; a trained one carries its own table.
"""

import base64
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError, did_you_mean
from gptjax.tokenizers.plain import utf8

EOT = "<|endoftext|>"
# GPT-2's pre-tokenisation (Radford et al. 2019, section 2.2; published with the model).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_FILES = ("vocab.bpe", "encoder.json")
GPT2_VOCAB = 50257


class BPETokenizer:
    """A byte-level BPE given by its ranks, run by tiktoken.

    `gpt2` has 50257 ids. `bpe:N` has N ids; the last one is end-of-text. Other encodings of
    tiktoken may skip ids, so they pass `eot_id` and `n_vocab`.
    """

    def __init__(
        self,
        name: str,
        ranks: dict[bytes, int],
        pattern: str = GPT2_PATTERN,
        eot_id: int | None = None,
        n_vocab: int | None = None,
    ):
        import tiktoken

        self.name, self.ranks, self.pattern = name, ranks, pattern
        self.eot_id = len(ranks) if eot_id is None else eot_id
        self.n_vocab = len(ranks) + 1 if n_vocab is None else n_vocab
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOT: self.eot_id}
        )
        # The first thread to use the encoding owns its regex, and slows down all other threads
        # while it works: two threads lose half of their speed. So this thread, which only hands
        # out the work, uses it first.
        self._encoding.encode_ordinary("a")

    def encode(self, text: str) -> np.ndarray:
        """BPE ids of the text."""
        return self._encoding.encode_to_numpy(utf8(text).decode(), disallowed_special=())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, without end-of-text."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id."""
        return self._bytes_of_id[token]

    def to_json(self) -> str:
        """Pattern, and base64 tokens in order of id; null for an id without a token."""
        table: dict[str, Any] = {"name": self.name, "pattern": self.pattern}
        tokens = [base64.b64encode(token).decode() or None for token in self._bytes_of_id]
        if (self.eot_id, self.n_vocab) == (len(self.ranks), len(self.ranks) + 1):
            return json.dumps({**table, "tokens": tokens[:-1]})
        return json.dumps({**table, "tokens": tokens, "eot": self.eot_id})

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        tokens = [b""] * self.n_vocab
        for token, rank in self.ranks.items():
            tokens[rank] = token
        return tokens


def bpe_from_table(table: dict[str, Any]) -> BPETokenizer:
    """Make a tokenizer from its JSON; raises `ValueError` if the JSON is damaged."""
    tokens = table["tokens"]
    ranks = {base64.b64decode(token): i for i, token in enumerate(tokens) if token is not None}
    if not table["pattern"]:
        raise ValueError("its pattern is empty")  # tiktoken would panic
    if not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError("not every byte has a token")
    if "eot" not in table:
        return BPETokenizer(table["name"], ranks, table["pattern"])
    if not 0 <= table["eot"] < len(tokens) or tokens[table["eot"]] is not None:
        raise ValueError(f"end-of-text is {table['eot']}, which is not a free id of the table")
    return BPETokenizer(table["name"], ranks, table["pattern"], table["eot"], len(tokens))


def gpt2(files: Path | None = None) -> BPETokenizer:
    """GPT-2's 50257-token BPE, from local files if there are any, else through tiktoken.

    `files` (or the directory that GPTJAX_GPT2_BPE names) holds OpenAI's vocab.bpe and encoder.json.
    Without it, tiktoken reads its cache in TIKTOKEN_CACHE_DIR, or downloads. Raises `UserError` if
    neither works.
    """
    directory = files or (Path(d) if (d := os.environ.get("GPTJAX_GPT2_BPE")) else None)
    if directory is not None:
        return BPETokenizer("gpt2", _gpt2_ranks_from_files(directory))
    import requests
    from tiktoken_ext import openai_public

    try:
        # tiktoken deletes a cached file whose hash is wrong; if it may not, it raises OSError,
        # which means the same to the user: there is no file
        ranks = openai_public.gpt2()["mergeable_ranks"]
    except (requests.RequestException, OSError, ValueError) as error:
        raise UserError(
            "the gpt2 tokenizer's files are not cached, and they cannot be downloaded from here: "
            "set TIKTOKEN_CACHE_DIR to a directory that tiktoken filled on a machine with a "
            f"network, or set GPTJAX_GPT2_BPE to a directory with OpenAI's {GPT2_FILES[0]} and "
            f"{GPT2_FILES[1]}. ({type(error).__name__})"
        ) from error
    return BPETokenizer("gpt2", ranks)


def tiktoken_encoding(encoding: str) -> BPETokenizer:
    """Any of tiktoken's encodings, with its own ids, from tiktoken's cache or a download.

    Raises `UserError` if there is no such encoding, or if its file is missing.
    """
    import requests
    import tiktoken

    names = tiktoken.list_encoding_names()
    if encoding not in names:
        raise UserError(
            f"tiktoken has no encoding {encoding!r}{did_you_mean(encoding, names)}; "
            f"it has {', '.join(names)}"
        )
    try:
        found = tiktoken.get_encoding(encoding)
    except (requests.RequestException, OSError, ValueError) as error:
        raise UserError(
            f"the files of tiktoken's {encoding} are not cached, and they cannot be downloaded "
            "from here: set TIKTOKEN_CACHE_DIR to a directory that tiktoken filled on a machine "
            f"with a network. ({type(error).__name__})"
        ) from error
    return BPETokenizer(
        f"tiktoken:{encoding}",
        found._mergeable_ranks,
        found._pat_str,
        found.eot_token,
        found.n_vocab,
    )


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
    """Keep tiktoken from caching local files by path: it would never notice that one changed."""
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
    `UserError` if the text has too few pairs to merge.

    >>> bpe = train_bpe(["low lower lowest"] * 5, 260)  # 256 bytes, three merges, end-of-text
    >>> bpe.encode("low").tolist(), bpe.decode([257])
    ([257], 'low')
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    texts = (utf8(text).decode() for text in texts)
    # each text is a piece of 1 MiB: the default buffer of 8192 could hold the whole corpus
    trainer.train_from_iterator(texts, n_vocab - 1, buffer_size=8, pattern=GPT2_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < n_vocab - 1:
        raise UserError(
            f"the text gives a BPE of {len(ranks) + 1} tokens at most, not {n_vocab}: "
            f"ask for bpe:{len(ranks) + 1}, or for bytes"
        )
    return BPETokenizer(f"bpe:{n_vocab}", ranks)

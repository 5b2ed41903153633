"""The tokenizer protocol, and the two tokenizers that need no table: bytes and characters."""

import json
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from gptjax.base.errors import UserError


def utf8(text: str) -> bytes:
    """UTF-8 of any Python string; lone surrogates, which have no UTF-8, become `?`."""
    return text.encode("utf-8", "replace")


class Tokenizer(Protocol):
    """The interface of a tokenizer for the rest of gptjax."""

    name: str
    n_vocab: int
    eot_id: int

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`; special tokens in it, such as <|endoftext|>, are plain text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; invalid UTF-8 becomes U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for end-of-text."""
        ...

    def to_json(self) -> str:
        """JSON from which `tokenizer_from_json` makes this tokenizer again."""
        ...


class ByteTokenizer:
    """256 bytes and end-of-text: needs no files and encodes any text."""

    name = "bytes"
    n_vocab = 257
    eot_id = 256

    def encode(self, text: str) -> np.ndarray:
        """UTF-8 bytes of the text."""
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes, without end-of-text."""
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token]) if token < 256 else b""

    def to_json(self) -> str:
        """The name is enough."""
        return json.dumps({"name": self.name})


class CharTokenizer:
    """The characters of an alphabet in its order, then end-of-text.

    Raises ValueError if the alphabet is empty, or has a character twice.
    """

    name = "chars"

    def __init__(self, alphabet: str):
        codes = _code_points(alphabet)
        self._order = np.argsort(codes).astype(np.uint32)
        self._codes = codes[self._order]
        is_text = bool(alphabet) and utf8(alphabet).decode() == alphabet
        if not is_text or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"an alphabet has every character once, not {alphabet!r}")
        self.alphabet, self.eot_id, self.n_vocab = alphabet, len(alphabet), len(alphabet) + 1

    def encode(self, text: str) -> np.ndarray:
        """Positions in the alphabet; raises `UserError` for a character outside it."""
        codes = _code_points(text)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        known = self._codes[places] == codes
        if not known.all():
            stranger = chr(codes[np.argmin(known)])
            raise UserError(
                f"{stranger!r} is not one of the {len(self.alphabet)} characters of the text that "
                f"this chars tokenizer was made from: {self.alphabet!r}"
            )
        return self._order[places]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, without end-of-text."""
        return "".join(self.alphabet[i] for i in ids if i < self.eot_id)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of the character."""
        return self.alphabet[token : token + 1].encode()

    def to_json(self) -> str:
        """The alphabet."""
        return json.dumps({"name": self.name, "alphabet": self.alphabet})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(utf8(text).decode().encode("utf-32-le"), dtype="<u4")


def collect_characters(texts: Iterable[str]) -> CharTokenizer:
    """Make the tokenizer of all characters in `texts`, in the order of their code points.

    Raises `UserError` if there are none.

    >>> letters = collect_characters(["abba", "c"])
    >>> letters.alphabet, letters.encode("cab").tolist()
    ('abc', [2, 0, 1])
    """
    alphabet = set[str]().union(*(utf8(text).decode() for text in texts))
    if not alphabet:
        raise UserError("the text is empty: there are no characters to make a tokenizer from")
    return CharTokenizer("".join(sorted(alphabet)))

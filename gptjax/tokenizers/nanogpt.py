"""The characters of nanoGPT's data sets: `meta.pkl`, beside `train.bin` and `val.bin`.

It is a pickled dictionary: `vocab_size`, `itos` (id to character) and `stoi` (character to id). A
pickle is a program, so it is inspected before it runs: it may build dictionaries of strings and
numbers, and nothing else.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.tokenizers.plain import CharTokenizer

META = "meta.pkl"
MOST_BYTES = 2**24  # all characters of Unicode, both ways, are a quarter of that
_HARMLESS = {
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "NONE"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "NEWTRUE", "NEWFALSE"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
}


_WRONG = (ValueError, TypeError, LookupError, EOFError, RecursionError, pickle.PickleError)


class _PlainUnpickler(pickle.Unpickler):
    """Builds only values that need no code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_characters(path: Path) -> CharTokenizer:
    """The characters of a `meta.pkl`, with its ids and an end-of-text after them.

    Raises `UserError` for anything but dictionaries of strings and numbers with one character for
    each id.
    """
    try:
        return _characters(_plain_dictionary(path))
    except (*_WRONG, OSError) as error:
        raise UserError(
            f"{path} is not nanoGPT's list of characters ({error or type(error).__name__}): "
            "expected a pickled dictionary of vocab_size, itos and stoi; move it away if the "
            "files beside it need another --tokenizer"
        ) from error


def _plain_dictionary(path: Path) -> dict:
    """Unpickle a dictionary; raises ValueError, before anything runs, if that takes code."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes; at most {MOST_BYTES:,} are read")
    raw = path.read_bytes()
    for count, (operation, argument, _) in enumerate(pickletools.genops(raw)):
        if operation.name not in _HARMLESS:
            raise ValueError(f"it asks for {operation.name} {argument or ''!s:.40}".rstrip())
        if "PUT" in operation.name and isinstance(argument, int) and argument > count:
            raise ValueError(f"it asks for memory of {argument:,} places")
    found = _PlainUnpickler(io.BytesIO(raw)).load()
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _characters(meta: dict) -> CharTokenizer:
    """Check that the two dictionaries agree and are complete."""
    if missing := [name for name in ("vocab_size", "itos", "stoi") if name not in meta]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    size, itos, stoi = meta["vocab_size"], meta["itos"], meta["stoi"]
    if not (type(size) is int and isinstance(itos, dict) and isinstance(stoi, dict)):
        raise ValueError("its vocab_size is not a whole number, or itos or stoi not a dictionary")
    if len(itos) != size or any(i not in itos for i in range(size)):
        raise ValueError(f"its itos has {len(itos):,} ids, expected 0 to {size - 1:,}")
    characters = [itos[i] for i in range(size)]
    if wrong := [c for c in characters if not isinstance(c, str) or len(c) != 1]:
        raise ValueError(f"its itos has {wrong[0]!r:.40}, which is not one character")
    if stoi != {c: i for i, c in enumerate(characters)}:
        raise ValueError("its stoi and its itos have different ids")
    return CharTokenizer("".join(characters))

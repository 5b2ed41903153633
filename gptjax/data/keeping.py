"""Examples in tokens, kept beside a run, so that it resumes without its files.

One file holds the arrays of all examples, the hashes of the files that they came from, and the
settings that made them. It is written when the run begins, and read only if these still hold.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.base.files import replaced, sha256_of
from gptjax.config import Config
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import fingerprint

KEPT = "examples.npz"
FILES = ("examples", "val_examples", "test_examples")
FIELDS = (
    *("val_fraction", "test_fraction", "split_seed", "input_format", "header", "text_field"),
    *("label_field", "pair_field", "choice_fields"),
)
Arrays = dict[str, np.ndarray]


class Prepared(NamedTuple):
    """Examples in tokens, as tuples of arrays and numbers, and facts about them for the user."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]
    facts: dict[str, Any]
    """Whatever JSON can hold."""

    def packed(self) -> Arrays:
        """All examples in a few arrays."""
        splits = zip(self._fields, self[:3], strict=False)
        return {
            f"{split}.{name}": values
            for split, items in splits
            for name, values in flattened(items).items()
        }


class Origin(NamedTuple):
    """What examples were made of."""

    settings: dict[str, Any]
    files: dict[str, str | None]
    """A hash of each file by its field; None for one that is gone."""

    def is_of(self, other: "Origin") -> bool:
        """Whether the same examples come from here; of a file that is gone, they do."""
        return self.settings == other.settings and all(
            self.files[name] in (None, other.files[name]) for name in FILES
        )

    def has_file(self, path: Path) -> bool:
        """Whether examples came from this very file."""
        return _hash(str(path)) in {digest for digest in self.files.values() if digest}


class Kept(NamedTuple):
    """What a run keeps of its examples."""

    examples: Prepared
    origin: Origin


def origin_of(config: Config, tokenizer: Tokenizer) -> Origin:
    """The files of a config, and the settings that decide what becomes of them."""
    data, classify = config.data, config.classify
    settings = {
        "task": config.task,
        "tokenizer": fingerprint(tokenizer),
        "context": config.context,
        "data": {name: getattr(data, name) for name in FIELDS},
        "given": [name for name in FILES if getattr(data, name) is not None],
        "classify": [classify.form, classify.read, classify.balance, classify.labels],
        "instruct": list(vars(config.instruct).values()),
    }
    files = {name: _hash(getattr(data, name)) for name in FILES}
    return Origin(json.loads(json.dumps(settings)), files)


def _hash(name: str | None) -> str | None:
    if name is None or not Path(name).is_file():
        return None
    return sha256_of(Path(name), lambda count: None)


def flattened(items: Sequence[Any]) -> Arrays:
    """Named tuples of numbers, arrays, and tuples of arrays as one array or more for each field.

    >>> sorted(flattened([]))
    ['count']
    """
    arrays = {"count": np.array(len(items))}
    for field in items[0]._fields if items else ():
        values = [getattr(item, field) for item in items]
        if isinstance(values[0], tuple):
            arrays[f"{field}.counts"] = np.array([len(value) for value in values])
            values = [array for value in values for array in value]
        if values and isinstance(values[0], np.ndarray):
            arrays[f"{field}.lengths"] = np.array([len(value) for value in values])
            values = np.concatenate(values)
        arrays[field] = np.asarray(values)
    return arrays


def unflattened(kind: Any, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """The named tuples that `flattened` packed."""
    if not arrays["count"]:
        return []
    columns = []
    for field in kind._fields:
        values: Any = arrays[field]
        if f"{field}.lengths" in arrays:
            values = _cut(values, arrays[f"{field}.lengths"])
        else:
            values = values.tolist()
        if f"{field}.counts" in arrays:
            values = [tuple(group) for group in _cut(values, arrays[f"{field}.counts"])]
        columns.append(values)
    return [kind(*row) for row in zip(*columns, strict=True)]


def _cut(values: Any, lengths: np.ndarray) -> list[Any]:
    ends = np.cumsum(lengths).tolist()
    return [values[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def fingerprint_of(arrays: Arrays, labels: Sequence[str] = ()) -> str:
    """16 hexadecimal digits that change with every token, label and split."""
    digest = hashlib.sha256(json.dumps(list(labels)).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def write_kept(directory: Path, arrays: Arrays, facts: Mapping[str, Any], origin: Origin) -> None:
    """Write the examples of a run that begins, all of them or nothing."""
    about = json.dumps({"facts": facts, **origin._asdict()}).encode()
    with replaced(directory / KEPT) as file:
        named: Any = {"about": np.frombuffer(about, np.uint8), **arrays}
        np.savez(file, **named)


def read_kept(directory: Path, kind: Any) -> Kept | None:
    """The examples of a run that has begun, as tuples of this kind; None if it has none."""
    try:
        with np.load(directory / KEPT, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(arrays.pop("about").tobytes())
        train, validation, test = (
            unflattened(kind, _of(arrays, split)) for split in Prepared._fields[:3]
        )
        prepared = Prepared(train, validation, test, about["facts"])
        return Kept(prepared, Origin(about["settings"], about["files"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def read_origin(directory: Path) -> Origin | None:
    """What the examples of a run that has begun were made of; None if it keeps none."""
    try:
        with np.load(directory / KEPT, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
        return Origin(about["settings"], about["files"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _of(arrays: Arrays, split: str) -> Arrays:
    start = f"{split}."
    return {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}

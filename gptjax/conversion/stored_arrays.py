"""The arrays of a Hugging Face directory, whatever files hold them, read one at a time.

A directory has model.safetensors or pytorch_model.bin, or several files of either kind with an
index that says which array is in which. Files are mapped, so only what is read takes memory.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - with it NumPy has a bfloat16, which safetensors asks for
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.conversion.torch_files import load_torch_file, tensor_to_numpy

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, TORCH, TORCH + INDEX)  # the first one counts
EXACT = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # types that float32 holds
_OTHERS = ("tf_model.h5", "flax_model.msgpack", "*.gguf", "*.safetensors", "*.bin", "*.onnx")
Read = Callable[[], np.ndarray]


class StoredArrays(Mapping[str, np.ndarray]):
    """Arrays by name; asking for one reads it, and keeps no copy."""

    def __init__(self, reads: Mapping[str, Read]):
        self._reads = dict(reads)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._reads[name]()

    def __contains__(self, name: object) -> bool:  # the inherited one would read the array
        return name in self._reads

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)

    def renamed(self, name_of: Callable[[str], str | None]) -> "StoredArrays":
        """The same arrays under other names, without those for which `name_of` gives None.

        Raises ValueError, with the name, if two arrays would have the same one.

        >>> arrays = StoredArrays({"a": lambda: np.zeros(1), "b": lambda: np.ones(1)})
        >>> list(arrays.renamed({"a": "c", "b": None}.get))
        ['c']
        """
        reads: dict[str, Read] = {}
        for name, read in self._reads.items():
            if (new := name_of(name)) in reads:
                raise ValueError(new)
            if new is not None:
                reads[new] = read
        return StoredArrays(reads)

    def changed(
        self, names: Collection[str], change: Callable[[np.ndarray], np.ndarray]
    ) -> "StoredArrays":
        """The same arrays, with `change` applied to those of some names once they are read."""
        reads = dict(self._reads)
        for name in set(names) & set(reads):
            reads[name] = partial(lambda read: change(read()), reads[name])
        return StoredArrays(reads)


def has_weights(directory: Path) -> bool:
    """Whether a directory has a file of weights under one of Hugging Face's names."""
    return any((directory / name).is_file() for name in WEIGHTS)


def open_arrays(directory: Path) -> StoredArrays:
    """The arrays of a directory under the names that they have there.

    Raises `UserError` if there are none, or if a file is missing, damaged or a git-lfs pointer.
    """
    found = next((n for n in WEIGHTS if (directory / n).is_file()), None)
    if found is None:
        others = sorted({p.name for pattern in _OTHERS for p in directory.glob(pattern)})
        instead = f", found only {', '.join(others[:5])}" if others else ""
        raise UserError(
            f"{directory} has no weights: expected {SAFETENSORS} or {TORCH}, or their shards "
            f"with {SAFETENSORS}{INDEX} or {TORCH}{INDEX}{instead}"
        )
    if not found.endswith(INDEX):
        return open_file(directory / found)
    where = _read_index(directory / found)
    if missing := sorted({n for n in where.values() if not (directory / n).is_file()}):
        raise UserError(
            f"{directory / found} names files that are not there: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; fetch them again"
        )
    shards = {name: _open(directory / name) for name in sorted(set(where.values()))}
    if lost := [name for name, file in where.items() if name not in shards[file]]:
        raise UserError(
            f"{directory / found} says that {where[lost[0]]} has {lost[0]}, but it has not: fetch "
            "both again"
        )
    return StoredArrays({name: shards[file][name] for name, file in where.items()})


def open_file(path: Path) -> StoredArrays:
    """The arrays of one file, safetensors or torch's; raises `UserError` like `open_arrays`."""
    return StoredArrays(_open(path))


def _read_index(path: Path) -> dict[str, str]:
    """The file of each array; raises `UserError` for anything but an index."""
    require_fetched(path)
    try:
        where = json.loads(path.read_text("utf-8"))["weight_map"]
        if not where or any(Path(n).name != n or n in (".", "..") for n in where.values()):
            raise ValueError("its weight_map is empty, or names files outside the directory")
        return {str(name): str(file) for name, file in where.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not an index of weights ({type(error).__name__}: {error}): fetch it again"
        ) from error


def _open(path: Path) -> dict[str, Read]:
    """A way to read each array of one file."""
    require_fetched(path)
    return _open_torch(path) if path.suffix == ".bin" else _open_safetensors(path)


def _open_safetensors(path: Path) -> dict[str, Read]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "np")
        return {name: partial(_read_safetensor, file, name, path) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is damaged or cut short: it has {size:,} bytes, and safetensors says: "
            f"{error}. Fetch it again"
        ) from error


def _read_safetensor(file: Any, name: str, path: Path) -> np.ndarray:
    if (stored := file.get_slice(name).get_dtype()) not in EXACT:
        raise _wrong_type(name, path, stored)
    return file.get_tensor(name)


def _open_torch(path: Path) -> dict[str, Read]:
    state = load_torch_file(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # as some trainers save it
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected arrays by their names")
    return {str(name): partial(_read_tensor, state, name, path) for name in state}


def _read_tensor(state: Mapping[Any, Any], name: Any, path: Path) -> np.ndarray:
    tensor = state[name]
    stored = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    array = tensor_to_numpy(tensor) if stored in EXACT.values() else None
    if array is None:
        raise _wrong_type(str(name), path, stored)
    return array


def _wrong_type(name: str, path: Path, stored: str) -> UserError:
    return UserError(
        f"{name} in {path} is stored as {stored}, expected {', '.join(EXACT.values())}: save it "
        "again in one of these types"
    )

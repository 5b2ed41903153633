"""Writes arrays as safetensors, in several files with an index where one would be too large.

The names of the files and of the index are those that transformers looks for.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

STEM = "model"
LARGEST_FILE = 5 * 10**9  # bytes; what transformers' save_pretrained took for many years
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FileType = Literal["float32", "bfloat16"]


def write_safetensors(
    arrays: Mapping[str, np.ndarray],
    directory: Path,
    dtype: FileType = "float32",
    largest: int = LARGEST_FILE,
) -> int:
    """Write arrays in one type; returns the bytes of all of them. bfloat16 rounds to the nearest.

    A file has at most `largest` bytes of arrays, unless a single array has more. Its metadata says
    `format: pt`, without which transformers refuses it.
    """
    from safetensors.numpy import save_file

    groups = list(_groups(arrays, DTYPES[dtype].itemsize, largest))
    places, total = {}, 0
    for number, names in enumerate(groups, 1):
        several = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        file = f"{STEM}{several}.safetensors"
        kept = {name: np.ascontiguousarray(arrays[name], DTYPES[dtype]) for name in names}
        total += sum(array.nbytes for array in kept.values())
        save_file(kept, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        path = directory / f"{STEM}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return total


def _groups(arrays: Mapping[str, np.ndarray], width: int, largest: int) -> Iterator[list[str]]:
    """Names in their order, cut where a group would have more than `largest` bytes."""
    group, size = [], 0
    for name, array in arrays.items():
        more = array.size * width
        if group and size + more > largest:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    yield group

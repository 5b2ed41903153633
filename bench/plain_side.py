"""Floors: the same work without a framework. This module knows neither jax nor torch.

Each function builds a side for `worker.py`: it returns a round and a dict of facts.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import Figures, Round, Skipped, cores

from gptjax.data.manifest import read_manifest
from gptjax.data.shards import HEADER_BYTES


def load(data: str, context: int, rows: int, steps: int) -> tuple[Round, dict]:
    """Batches as nanoGPT draws them: it maps the file again for each; all tokens become int64.

    Windows start at random places: there are no epochs, and there is nothing to resume.
    """
    manifest = read_manifest(Path(data))
    shard = manifest.splits["train"].shards[0]
    rng = np.random.default_rng(0)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        tokens = np.memmap(
            manifest.directory / shard.name,
            dtype=manifest.dtype,
            mode="r",
            offset=HEADER_BYTES,
            shape=(shard.tokens,),
        )
        starts = rng.integers(0, len(tokens) - context, rows)
        inputs = np.stack([tokens[s : s + context].astype(np.int64) for s in starts])
        targets = np.stack([tokens[s + 1 : s + 1 + context].astype(np.int64) for s in starts])
        return inputs, targets

    def one_round() -> Figures:
        started = time.perf_counter()
        for _ in range(steps):
            assert batch()[1].shape == (rows, context)
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {}


def encode(texts: Sequence[str]) -> tuple[Round, dict]:
    """tiktoken's own batch call over the same documents, on as many threads."""
    encoding = _gpt2()
    documents = [Path(path).read_text() for path in texts]

    def one_round() -> Figures:
        started = time.perf_counter()
        ids = encoding.encode_ordinary_batch(documents, num_threads=cores())
        return {"seconds": time.perf_counter() - started, "tokens": sum(map(len, ids))}

    return one_round, {}


def encode_file(path: str) -> tuple[Round, dict]:
    """tiktoken's batch call over one file in pieces of 1 MiB, 64 of them in memory at a time."""
    encoding = _gpt2()

    def one_round() -> Figures:
        started, count = time.perf_counter(), 0
        with Path(path).open("rb") as file:
            while raw := [piece for _ in range(64) if (piece := file.read(2**20))]:
                pieces = [piece.decode("utf-8", "replace") for piece in raw]
                ids = encoding.encode_ordinary_batch(pieces, num_threads=cores())
                count += sum(map(len, ids))
        return {"seconds": time.perf_counter() - started, "tokens": count}

    return one_round, {}


def _gpt2():
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever its downloader raises
        raise Skipped(f"tiktoken cannot load gpt2 ({type(error).__name__})") from error


def write(size: int, directory: str) -> tuple[Round, dict]:
    """Write `size` bytes into one file, and flush it to the disk."""
    block = np.random.default_rng(0).bytes(min(size, 2**24))
    path = Path(directory) / "plain"

    def one_round() -> Figures:
        started, left = time.perf_counter(), size
        with path.open("wb") as file:
            while left > 0:
                left -= file.write(block[:left])
            file.flush()
            written = time.perf_counter() - started
            os.fsync(file.fileno())
        return {"seconds": written, "until_safe": time.perf_counter() - started}

    one_round()
    return one_round, {}

"""Inspect a prepared directory: verify every hash, count tokens, and show some of the text.

It needs no write access: if the directory is read-only, only the histogram is left out.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import sha256_of, write_atomically
from gptjax.base.terminal import ByteProgress, byte_bars
from gptjax.data.manifest import Manifest, read_manifest, read_tokenizer
from gptjax.data.shards import open_shard
from gptjax.data.windows import TokenWindows

SHOWN_TOKENS, SHOWN_WINDOWS, WINDOW = 20, 3, 64
COUNTED_TOKENS = 2**22  # tokens counted at a time


@dataclass(frozen=True)
class Counts:
    """The findings of one pass over the tokens of a split."""

    lengths: np.ndarray
    """Tokens of every document, without its end-of-text."""
    frequencies: np.ndarray
    """How often each id occurs, [V]."""


def verify_shards(manifest: Manifest, progress: ByteProgress = lambda _: None) -> None:
    """Compare the sha256 of every shard; raises `UserError` that names all damaged ones."""
    wrong = []
    for split in manifest.splits.values():
        for shard in split.shards:
            path = manifest.directory / shard.name
            try:
                is_same = sha256_of(path, progress) == shard.sha256
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
            if not is_same:
                wrong.append(shard.name)
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} in {manifest.directory} changed since the data was prepared (its "
            "sha256 differs from the manifest's): move it away and prepare the data again"
        )


def count_tokens(manifest: Manifest, split: str, eot_id: int) -> Counts:
    """Document lengths and token frequencies of a split, a few million tokens at a time."""
    frequencies = np.zeros(manifest.n_vocab, dtype=np.int64)
    ends, position = [np.empty(0, dtype=np.int64)], 0
    for tokens in _parts(manifest, split):
        found = np.bincount(tokens, minlength=manifest.n_vocab)
        if len(found) > manifest.n_vocab:
            raise UserError(f"{manifest.directory} holds token id {len(found) - 1}: it is damaged")
        frequencies += found
        ends.append(np.flatnonzero(tokens == eot_id) + position)
        position += len(tokens)
    starts = np.concatenate([[-1], *ends, [position]])
    lengths = np.diff(starts) - 1
    return Counts(lengths[lengths > 0], frequencies)


def _parts(manifest: Manifest, split: str) -> Iterator[np.ndarray]:
    for shard in manifest.splits[split].shards:
        path = manifest.directory / shard.name
        tokens = open_shard(path, shard.tokens, manifest.dtype, shard.layout)
        yield from np.split(tokens, range(COUNTED_TOKENS, len(tokens), COUNTED_TOKENS))


def report(manifest: Manifest, split: str, counts: Counts) -> str:
    """Counts, most frequent tokens and some windows of a split, as text."""
    tokenizer, found = read_tokenizer(manifest), manifest.splits[split]
    per_byte = found.tokens / max(1, found.bytes)
    longest = counts.lengths.max(initial=0)
    documents = found.documents or len(counts.lengths)  # adoption once counted ends alone
    lines = [
        f"{split}: {found.tokens:,} tokens, {documents:,} documents, {found.bytes:,} bytes, "
        f"{per_byte:.3f} tokens per byte, longest document {longest:,} tokens"
    ]
    order = np.argsort(-counts.frequencies, kind="stable")[:SHOWN_TOKENS]
    shown = [
        f"{tokenizer.token_bytes(int(i)).decode('utf-8', 'replace')!r} "
        f"{counts.frequencies[i] / max(1, found.tokens):.1%}"
        for i in order
        if counts.frequencies[i]
    ]
    lines.append(f"  most frequent: {', '.join(shown)}")
    windows = TokenWindows(manifest, split, WINDOW)
    for k in range(min(SHOWN_WINDOWS, len(windows))):
        index = k * len(windows) // SHOWN_WINDOWS
        lines.append(f"  window {index:,}: {tokenizer.decode(windows[index].tolist())!r}")
    return "\n".join(lines)


def plot_lengths(counts: Counts, name: str, path: Path) -> str:
    """Draw a histogram of document lengths, both axes logarithmic; returns its place or why not."""
    if not os.access(path.parent, os.W_OK):
        return f"not drawn, because {path.parent} is read-only"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths = counts.lengths if len(counts.lengths) else np.ones(1)
    axes.hist(lengths, bins=np.geomspace(lengths.min(), lengths.max() + 1, 50).tolist())
    median = float(np.median(lengths))
    axes.axvline(median, color="black", linestyle=":", label=f"median {median:,.0f}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens in a document",
        ylabel="documents",
        ylim=(0.7, None),  # a single document is a bar too
        title=f"{name}: {len(counts.lengths):,} documents",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    try:
        write_atomically(path, drawn.getvalue())
    except OSError as error:
        return f"not drawn, because {path} cannot be written: {error.strerror}"
    return str(path)


def inspect_with_report(directory: Path) -> None:
    """Verify with a progress bar, then print the findings and draw the histogram."""
    manifest = read_manifest(directory)
    eot_id = read_tokenizer(manifest).eot_id
    paths = [directory / shard.name for s in manifest.splits.values() for shard in s.shards]
    with byte_bars() as bar:
        task = bar.add_task("verifying", total=sum(path.stat().st_size for path in paths))
        verify_shards(manifest, lambda done: bar.advance(task, done))
    print(
        f"{directory}: {len(paths)} shards of {manifest.dtype}, all as the manifest says; "
        f"tokenizer {manifest.tokenizer} ({manifest.tokenizer_fingerprint}), from {manifest.source}"
    )
    for split in manifest.splits:
        counts = count_tokens(manifest, split, eot_id)
        print(report(manifest, split, counts))
        if split == "train":
            lengths = plot_lengths(counts, directory.name, directory / "lengths.png")
            print(f"  document lengths: {lengths}")

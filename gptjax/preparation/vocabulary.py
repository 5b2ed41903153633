"""Trains a tokenizer on text and writes one JSON file, which any preparation can use."""

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically
from gptjax.preparation.documents import PART_BYTES
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.readers import passages_of
from gptjax.preparation.sources import Input
from gptjax.preparation.units import find_units
from gptjax.preparation.workspace import store_plain_files
from gptjax.tokenizers.bpe import BPETokenizer, train_bpe
from gptjax.tokenizers.registry import fingerprint


def train_tokenizer(inputs: Sequence[Input], n_vocab: int, out: Path) -> BPETokenizer:
    """Train a byte-level BPE of `n_vocab` ids on all documents and write it to `out`.

    Raises `UserError` if `out` exists or cannot be written, or if there is no text.
    """
    with _plain_files(inputs, out, found := Oddities()) as plain:
        return _train(plain, n_vocab, out, found)


def train_tokenizer_with_report(
    inputs: Sequence[Input], n_vocab: int, out: Path, oddities: Oddities
) -> None:
    """Train, and print the amount of text before and the result afterwards."""
    with _plain_files(inputs, out, oddities) as plain:
        size = sum(source.size for source in plain)
        print(f"training a BPE of {n_vocab:,} tokens on {size / 1e6:,.1f} MB", flush=True)
        tokenizer = _train(plain, n_vocab, out, oddities)
        for note in describe_oddities(oddities.counts, oddities.first):
            print(f"note: {note}")
        tokens = shown = 0
        for text in _texts(plain, Oddities()):
            tokens += len(tokenizer.encode(text))
            shown += len(text.encode())
            if shown >= PART_BYTES:
                break
    print(
        f"{out}: {tokenizer.n_vocab:,} tokens, {shown / max(1, tokens):.2f} bytes per token at "
        f"the beginning of the text, fingerprint {fingerprint(tokenizer)}; now try\n"
        f"  python -m gptjax.prepare --tokenizer {shlex.quote(str(out))} --input FILE... --out DIR"
    )


@contextmanager
def _plain_files(inputs: Sequence[Input], out: Path, oddities: Oddities) -> Iterator[list[Input]]:
    """The inputs as plain files, while the context lasts; unpacked ones lie beside `out`."""
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json: a tokenizer is stored as one JSON file")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out, or move that file away")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as directory:
            yield store_plain_files(inputs, Path(directory), oddities)
    except BrokenPipeError:  # the terminal's, not that of `out`
        raise
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _train(plain: Sequence[Input], n_vocab: int, out: Path, oddities: Oddities) -> BPETokenizer:
    if next(_texts(plain, found := Oddities()), None) is None:
        why = "; ".join(describe_oddities(found.counts, found.first))
        raise UserError(f"there is no text in the input: {why or 'no document at all'}")
    tokenizer = train_bpe(_texts(plain, oddities), n_vocab)
    write_atomically(out, tokenizer.to_json().encode())
    return tokenizer


def _texts(plain: Sequence[Input], oddities: Oddities) -> Iterator[str]:
    """The text of all documents, part by part."""
    for passage in passages_of(chain.from_iterable(find_units(plain)), oddities):
        for part in passage.document.parts(passage.start, passage.stop):
            yield part.decode("utf-8", "replace")

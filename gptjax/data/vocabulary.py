"""Train a tokenizer on text by itself, as one JSON file that any preparation may then use."""

from collections.abc import Sequence
from pathlib import Path

from gptjax.data.bpe import BPETokenizer, train_bpe
from gptjax.data.sources import Document
from gptjax.data.tokenizers import fingerprint
from gptjax.errors import UserError
from gptjax.files import write_atomically


def train_tokenizer(documents: Sequence[Document], n_vocab: int, out: Path) -> BPETokenizer:
    """Train a byte-level BPE of `n_vocab` ids on all documents and write it to `out`.

    Raises `UserError` where `out` is there already, or cannot be written.
    """
    if out.suffix != ".json":
        raise UserError(f"--out {out} is no .json file: a tokenizer is stored as one, TOK.json")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out, or move that file away")
    tokenizer = train_bpe((text for d in documents for text in d.pieces()), n_vocab)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, tokenizer.to_json().encode())
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return tokenizer


def train_tokenizer_aloud(documents: Sequence[Document], n_vocab: int, out: Path) -> None:
    """Train on a terminal: what is trained on before, what came of it after."""
    size = sum(document.size for document in documents)
    print(f"training a BPE of {n_vocab:,} tokens on {size / 1e6:,.1f} MB", flush=True)
    tokenizer = train_tokenizer(documents, n_vocab, out)
    tokens = size_in_tokens = 0
    for text in documents[0].pieces():
        tokens += len(tokenizer.encode(text))
        size_in_tokens += len(text.encode("utf-8", "replace"))
    print(
        f"{out}: {tokenizer.n_vocab:,} tokens, {size_in_tokens / max(1, tokens):.2f} bytes per "
        f"token in {documents[0].path.name}, fingerprint {fingerprint(tokenizer)}; now try\n"
        f"  python -m gptjax.prepare --tokenizer {out} --input FILE... --out DIR"
    )

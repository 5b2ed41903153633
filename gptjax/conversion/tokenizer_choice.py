"""The tokenizer of a model file that carries none, as those of nanoGPT and llm.c.

Such a file knows only how many ids its model has. The tokenizer comes from the command line, from a
file beside the model, or from the number alone where it is GPT-2's.
"""

from collections.abc import Iterable
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.tokenizers.bpe import GPT2_VOCAB, BPETokenizer
from gptjax.tokenizers.nanogpt import META, read_characters
from gptjax.tokenizers.plain import CharTokenizer, Tokenizer
from gptjax.tokenizers.registry import make_tokenizer, read_tokenizer_file

GPT2_PADDED = 50304  # nanoGPT's train.py rounds GPT-2's vocabulary up to it
SMALLEST_MULTIPLE, LARGEST_MULTIPLE = 64, 128  # to which trainers pad the table


def choose_tokenizer(
    n_vocab: int, given: str | None, beside: Iterable[Path], model: Path
) -> tuple[Tokenizer, int]:
    """The tokenizer of a model with `n_vocab` rows, and how many of the rows are ids of it.

    `given` is the user's --tokenizer: a name, a JSON file, or nanoGPT's meta.pkl. Without it the
    first file of `beside` that exists counts, and then GPT-2's where the number is GPT-2's. Fewer
    rows than `n_vocab` are ids where the others only pad the table. Characters of nanoGPT have no
    end-of-text, so their tokenizer has one id more than the model: it is never predicted.

    Raises `UserError`, which names the file `model`, if there is no tokenizer or it does not fit.
    """
    found = next((path for path in beside if path.is_file()), None)
    if given is not None:
        tokenizer, where = _open(given), f"--tokenizer {given}"
    elif found is not None:
        tokenizer, where = _open(str(found)), str(found)
    elif n_vocab in (GPT2_VOCAB, GPT2_PADDED):
        tokenizer, where = make_tokenizer("gpt2"), "gpt2"
    else:
        raise UserError(
            f"{model} has {n_vocab:,} token ids and does not say which tokenizer made them: give "
            f"--tokenizer, a name such as gpt2 or bytes, a tokenizer's JSON file, or nanoGPT's "
            f"{META} for a model of characters"
        )
    kept = ids_kept(tokenizer, n_vocab)
    if kept is None:
        raise UserError(
            f"{where} has {tokenizer.n_vocab:,} token ids, but {model} has {n_vocab:,}: give the "
            "--tokenizer that made the tokens of its training"
        )
    return tokenizer, kept


def ids_kept(tokenizer: Tokenizer, n_vocab: int) -> int | None:
    """How many of a model's `n_vocab` rows are ids of the tokenizer; None if it does not fit.

    >>> from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer
    >>> ids_kept(ByteTokenizer(), 257), ids_kept(ByteTokenizer(), 320), ids_kept(ByteTokenizer(), 9)
    (257, 257, None)
    >>> ids_kept(CharTokenizer("abc"), 3)  # without end-of-text
    3
    """
    if isinstance(tokenizer, CharTokenizer) and n_vocab == len(tokenizer.alphabet):
        return n_vocab
    padding = n_vocab - tokenizer.n_vocab
    is_padded = 0 < padding < LARGEST_MULTIPLE and n_vocab % SMALLEST_MULTIPLE == 0
    return tokenizer.n_vocab if is_padded or padding == 0 else None


def with_unused_ids(tokenizer: Tokenizer, n_vocab: int) -> Tokenizer:
    """A trained BPE with unused ids after its last one, up to `n_vocab`; any other as it is.

    A name such as gpt2 or bytes says how many ids there are, so those keep their number.
    """
    if not isinstance(tokenizer, BPETokenizer) or not tokenizer.name.startswith("bpe:"):
        return tokenizer
    name = f"bpe:{n_vocab}"
    return BPETokenizer(name, tokenizer.ranks, tokenizer.pattern, tokenizer.eot_id, n_vocab)


def vocabulary_notes(tokenizer: Tokenizer, n_vocab: int) -> tuple[str, ...]:
    """What a user should know about a model whose `n_vocab` rows are not just the tokenizer's ids.

    >>> from gptjax.tokenizers.plain import CharTokenizer
    >>> vocabulary_notes(CharTokenizer("abc"), 3)
    ('the model has no end-of-text, so its texts end only where they are cut',)
    """
    if n_vocab < tokenizer.n_vocab:
        return ("the model has no end-of-text, so its texts end only where they are cut",)
    if n_vocab > tokenizer.n_vocab:
        return (
            f"dropped the last {n_vocab - tokenizer.n_vocab:,} of {n_vocab:,} rows of the "
            "vocabulary, which are no ids of the tokenizer; the trainer's own loss counts them, so "
            "it is a little higher",
        )
    return ()


def _open(name: str) -> Tokenizer:
    """A tokenizer by what --tokenizer says."""
    if name.endswith(".pkl"):
        return read_characters(Path(name))
    if name.endswith(".json"):
        return read_tokenizer_file(Path(name))
    return make_tokenizer(name)

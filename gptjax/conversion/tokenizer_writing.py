"""Writes a tokenizer as `transformers` loads it: tokenizer.json and the files beside it.

Byte-level BPEs, bytes and characters come out exactly. GPT-1's words do not: the `tokenizers`
library has neither ftfy nor spaCy. `gptjax.conversion.word_cutting` comes as near as regexes can.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.conversion.byte_level import bytes_as_text, merges_of_ranks
from gptjax.conversion.tokenizer_files import (
    EVERY_CHARACTER,
    MERGES,
    SETTINGS,
    SPECIAL_MAP,
    TOKENIZER,
    VOCABULARY,
)
from gptjax.conversion.word_cutting import cut_as_gpt1
from gptjax.tokenizers.bpe import EOT, GPT2_PATTERN, BPETokenizer
from gptjax.tokenizers.gpt1 import END, UNKNOWN, GPT1Tokenizer
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer, Tokenizer

GPT2_CLASS, ANY_CLASS = "GPT2Tokenizer", "PreTrainedTokenizerFast"


def write_tokenizer_files(
    tokenizer: Tokenizer,
    directory: Path,
    n_ctx: int,
    special_tokens: Sequence[str] = (),
    has_end: bool = True,
) -> None:
    """Write tokenizer.json and its settings, with vocab.json and merges.txt where there are merges.

    `n_ctx` is the longest text in tokens; `special_tokens` take the ids after the vocabulary.
    Without `has_end`, as in nanoGPT's models of characters, the model has no id for end-of-text.
    Raises `UserError` without the `tokenizers` library, or for a tokenizer that has no such file.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "writing a Hugging Face tokenizer needs the tokenizers library: "
            "pip install 'gptjax[convert]'"
        ) from error
    end = EOT
    if isinstance(tokenizer, GPT1Tokenizer):
        end = tokenizer.tokens[UNKNOWN]
        theirs, kind = _words(tokenizer), ANY_CLASS
    elif isinstance(tokenizer, BPETokenizer):
        theirs, kind = _byte_pairs(tokenizer)
    elif isinstance(tokenizer, ByteTokenizer):
        theirs, kind = _bytes(tokenizer), ANY_CLASS
    elif isinstance(tokenizer, CharTokenizer):
        theirs, kind = _characters(tokenizer, has_end), ANY_CLASS
    else:
        raise UserError(f"tokenizer {tokenizer.name} has no form that transformers can load")
    special = [*([end] if has_end else []), *special_tokens]
    theirs.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    )
    theirs.save(str(directory / TOKENIZER))
    names = {"bos_token": end, "eos_token": end} if has_end else {}
    if isinstance(tokenizer, BPETokenizer | GPT1Tokenizer):
        names["unk_token"] = end
    settings = {
        "tokenizer_class": kind,
        "model_max_length": n_ctx,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if special_tokens:
        settings["additional_special_tokens"] = list(special_tokens)
    _write(directory / SETTINGS, settings)
    _write(directory / SPECIAL_MAP, names)
    model = json.loads(theirs.to_str())["model"]
    if model.get("merges"):
        ordered = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
        (directory / VOCABULARY).write_text(json.dumps(ordered, ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *map(" ".join, model["merges"])]
        (directory / MERGES).write_text("\n".join(lines) + "\n", "utf-8")


def _byte_pairs(tokenizer: BPETokenizer) -> tuple[Any, str]:
    """GPT-2's class builds its own steps and ignores tokenizer.json's, so others need another."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Theirs

    merges, is_whole = merges_of_ranks(tokenizer.ranks)
    vocab = {bytes_as_text(token): i for token, i in tokenizer.ranks.items()}
    theirs = Theirs(
        models.BPE({**vocab, EOT: tokenizer.eot_id}, merges, ignore_merges=not is_whole)
    )
    is_gpt2 = tokenizer.pattern == GPT2_PATTERN
    if is_gpt2:
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    theirs.decoder = decoders.ByteLevel()
    return theirs, GPT2_CLASS if is_gpt2 and is_whole else ANY_CLASS


def _bytes(tokenizer: ByteTokenizer) -> Any:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {bytes_as_text(bytes([byte])): byte for byte in range(256)}
    theirs = Theirs(models.BPE({**vocab, EOT: tokenizer.eot_id}, []))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.decoder = decoders.ByteLevel()
    return theirs


def _characters(tokenizer: CharTokenizer, has_end: bool) -> Any:
    """A table of words of one character; without an unknown token, a stranger is an error."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Theirs

    vocab = {character: i for i, character in enumerate(tokenizer.alphabet)}
    end = {EOT: tokenizer.eot_id} if has_end else {}
    theirs = Theirs(models.WordLevel({**vocab, **end}, unk_token=""))
    theirs.pre_tokenizer = pre_tokenizers.Split(Regex(EVERY_CHARACTER), "isolated")
    theirs.decoder = decoders.Fuse()
    return theirs


def _words(tokenizer: GPT1Tokenizer) -> Any:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models

    vocab = {token: i for i, token in enumerate(tokenizer.tokens)}
    merges = [(first, second) for first, _, second in (m.partition(" ") for m in tokenizer.merges)]
    theirs = Theirs(
        models.BPE(vocab, merges, unk_token=tokenizer.tokens[UNKNOWN], end_of_word_suffix=END)
    )
    cut_as_gpt1(theirs)
    return theirs


def _write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8")

"""Models of the Hugging Face ecosystem, in: a directory as `save_pretrained` or the hub has it.

It has config.json, weights, and usually a tokenizer. Names of arrays come with and without the
prefix `transformer.`, and, from files of 2018 and 2019, with `g`, `b`, `gamma` and `beta` for what
is called weight and bias now. Causal masks among the arrays are no parameters and are skipped.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.config.schema import CLASSIFY, PRETRAIN
from gptjax.conversion.huggingface_config import (
    CONFIG,
    ModelType,
    model_of,
    model_type_of,
    read_settings,
)
from gptjax.conversion.stored_arrays import StoredArrays, has_weights, open_arrays
from gptjax.conversion.tokenizer_choice import GPT2_PADDED, ids_kept, with_unused_ids
from gptjax.conversion.tokenizer_files import (
    MERGES,
    TOKENIZER,
    VOCABULARY,
    added_tokens,
    read_tokenizer_files,
)
from gptjax.conversion.weights import Weights, from_huggingface
from gptjax.model.places import leaves
from gptjax.tokenizers.bpe import GPT2_VOCAB
from gptjax.tokenizers.gpt1 import SPECIAL_TOKENS, GPT1Tokenizer
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import make_tokenizer

TOKENIZER_FILES = (TOKENIZER, VOCABULARY, MERGES)
PREFIX, HEAD = "transformer.", "lm_head.weight"
_TABLES = ("transformer.wte.weight", "transformer.tokens_embed.weight")
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_LAYER = re.compile(r"transformer\.h\.(\d+)\.")
_OLD = {"g": "weight", "w": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
_PUBLISHED = min(SPECIAL_TOKENS.values())  # ids of GPT-1 without the special tokens
_WITH_SPECIAL_TOKENS = (_PUBLISHED, _PUBLISHED + len(SPECIAL_TOKENS))
_BY_ROWS = {
    **{("gpt2", rows): "gpt2" for rows in (GPT2_VOCAB, GPT2_PADDED)},
    **{("openai-gpt", _PUBLISHED + more): "gpt1" for more in (0, len(SPECIAL_TOKENS))},
}
_BARE = re.compile(r"(wte|wpe|tokens_embed|positions_embed|h|ln_f)\.")


@dataclass(frozen=True)
class OpenedModel:
    """A Hugging Face model whose arrays have not been read yet."""

    model: ModelConfig
    tokenizer: Tokenizer
    arrays: StoredArrays
    """Under the names of GPT2LMHeadModel or OpenAIGPTLMHeadModel."""
    rows: int
    """Rows of its vocabulary; those after `model.n_vocab` lie in our padding, or are dropped."""
    notes: tuple[str, ...]
    task: str


def is_huggingface(path: Path) -> bool:
    """Whether a directory is one of Hugging Face's: by its config.json or its weights."""
    try:
        if has_weights(path):
            return True
        settings = read_settings(path)
        return "model_type" in settings or "architectures" in settings
    except (UserError, OSError):
        return False


def read_huggingface(path: Path, tokenizer: str | None = None) -> Weights:
    """Read a GPT-2 or an OpenAI-GPT from a directory; float16 and bfloat16 become float32.

    `tokenizer` is the name or the JSON file of one of ours, in place of the directory's. Raises
    `UserError` for another architecture, for settings that our network cannot follow, and where
    weights, config and tokenizer do not fit each other.
    """
    opened = open_huggingface(path, tokenizer)
    arrays, notes, kept = opened.arrays, list(opened.notes), opened.rows
    if opened.task == PRETRAIN:
        kept = opened.model.n_vocab or 0
        arrays = arrays.changed({*_TABLES, HEAD}, partial(_without_padding, opened.rows, kept))
    ours = from_huggingface(arrays, opened.model, str(path), kept)
    if strange := [name for name, array in ours.items() if not np.isfinite(array).all()]:
        notes.append(f"these arrays have values that are not finite: {', '.join(strange)}")
    source = f"the Hugging Face directory {path}"
    return Weights(opened.model, ours, opened.tokenizer, source, tuple(notes), opened.task)


def open_huggingface(path: Path, tokenizer: str | None = None) -> OpenedModel:
    """Everything about a model but its arrays, which are read when they are asked for.

    Needs no jax. Raises `UserError` like `read_huggingface`.
    """
    settings = read_settings(path)
    kind, model = model_type_of(settings, path / CONFIG), model_of(settings, path / CONFIG)
    arrays = _our_names(open_arrays(path), path)
    _check_layers(arrays, model, path)
    rows, notes, task = model.n_vocab or 0, [], PRETRAIN
    model, arrays, untied = _settle_head(model, arrays)
    notes += untied
    arrays = _without_zero_biases(arrays, model, path)
    found = _find_tokenizer(path, rows, kind, tokenizer)
    kept = ids_kept(found, rows)
    if isinstance(found, GPT1Tokenizer) and (found.n_vocab, rows) == _WITH_SPECIAL_TOKENS:
        kept, task = _PUBLISHED, CLASSIFY
        notes.append(f"its last {len(SPECIAL_TOKENS)} ids are GPT-1's start, delimiter and extract")
    elif kept is None:
        raise UserError(
            f"the tokenizer does not fit the model in {path}: it has {found.n_vocab:,} ids, the "
            f"model has {rows:,}; give the one of its training with --tokenizer"
        )
    elif kept < rows:
        found = with_unused_ids(found, rows)
        kept = max(kept, found.n_vocab)
    if task == PRETRAIN and kept < rows:
        notes.append(
            f"left out the last {rows - kept} rows of {rows:,}: no ids of its tokenizer; an export "
            f"has {kept:,}"
        )
    if tokenizer is None and (added := _read_as_text(path, found)):
        notes.append(
            f"its tokenizer adds {', '.join(added)}, which gptjax reads as plain text: their rows "
            "stay as unused ids, and the tokenizer of an export does not have them"
        )
    special = len(SPECIAL_TOKENS) if task == CLASSIFY else 0
    model = replace(model, n_vocab=kept, n_special=special)
    return OpenedModel(model, found, arrays, rows, tuple(notes), task)


def _read_as_text(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The tokens that were added to a directory's tokenizer and are none of ours."""
    known = SPECIAL_TOKENS if isinstance(tokenizer, GPT1Tokenizer) else ()
    added = added_tokens(path).items()
    return [token for token, i in added if i != tokenizer.eot_id and token not in known]


def _without_padding(rows: int, kept: int, array: np.ndarray) -> np.ndarray:
    return array[:kept] if len(array) == rows else array  # another shape is told as it is


def _our_names(arrays: StoredArrays, path: Path) -> StoredArrays:
    """Arrays under today's full names, without masks."""

    def name_of(name: str) -> str | None:
        first, dot, last = name.rpartition(".")
        full = f"{first}{dot}{_OLD.get(last, last)}"
        full = PREFIX + full if _BARE.match(full) else full
        return None if _MASK.fullmatch(full) else full

    try:
        return arrays.renamed(name_of)
    except ValueError as error:
        raise UserError(f"{path} has {error} twice, under an old and a new name") from error


def _check_layers(arrays: StoredArrays, model: ModelConfig, path: Path) -> None:
    """Raise `UserError` if the weights have another number of layers than config.json says."""
    layers = {int(found[1]) for name in arrays if (found := _LAYER.match(name))}
    count = max(layers, default=-1) + 1
    if count != model.n_layer:
        raise UserError(
            f"{path / CONFIG} says {model.n_layer} layers, but the weights beside it have {count}: "
            "take both from the same model"
        )


def _settle_head(
    model: ModelConfig, arrays: StoredArrays
) -> tuple[ModelConfig, StoredArrays, list[str]]:
    """Drop a head that only repeats the table; one that differs makes the model untied."""
    if not model.tied_head or HEAD not in arrays:
        return model, arrays, []
    table = next((arrays[name] for name in _TABLES if name in arrays), None)
    head = arrays[HEAD]
    if table is None or (table.shape == head.shape and np.array_equal(table, head, equal_nan=True)):
        return model, arrays.renamed(lambda name: None if name == HEAD else name), []
    note = (
        "config.json ties the head to the embedding, but the weights have another head: it is "
        "taken over, untied"
    )
    return replace(model, tied_head=False), arrays, [note]


def _without_zero_biases(arrays: StoredArrays, model: ModelConfig, path: Path) -> StoredArrays:
    """Drop the biases that a model without any has in a file, because readers there insist on them.

    Raises `UserError` if one of them is not zero.
    """
    if model.bias and model.qkv_bias:
        return arrays
    full = leaves(replace(model, bias=True, qkv_bias=True))
    absent = {leaf.huggingface for leaf in full} - {leaf.huggingface for leaf in leaves(model)}
    names = {name.format(i) for name in absent for i in range(model.n_layer)} & set(arrays)
    if wrong := sorted(name for name in names if arrays[name].any()):
        raise UserError(
            f"{path / CONFIG} says that the model has no biases, but {wrong[0]} is not zero: "
            "correct its section gptjax, or fetch both files again"
        )
    return arrays.renamed(lambda name: None if name in names else name)


def _find_tokenizer(path: Path, rows: int, kind: ModelType, given: str | None) -> Tokenizer:
    """The user's tokenizer, else the directory's, else the one that the number of ids names."""
    if given is not None:
        return make_tokenizer(given)
    default = _BY_ROWS.get((kind, rows))
    if default is not None and not any((path / n).is_file() for n in TOKENIZER_FILES):
        return make_tokenizer(default)
    return read_tokenizer_files(path, rows, kind)

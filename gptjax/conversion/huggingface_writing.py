"""Models of the Hugging Face ecosystem, out: a directory as transformers' `save_pretrained` has it.

It holds config.json, model.safetensors, generation_config.json, the tokenizer's files and a model
card. `gptjax.conversion.huggingface` reads it back without a change of any bit in float32.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import ModelConfig
from gptjax.conversion.classifier_file import write_classifier
from gptjax.conversion.huggingface_config import (
    CONFIG,
    EPSILON,
    OWN_SECTION,
    OWN_SWITCHES,
    ModelType,
)
from gptjax.conversion.model_card import CARD, ModelCard, card_text
from gptjax.conversion.new_directory import new_directory, require_free
from gptjax.conversion.reader_limits import Reader, require_reader
from gptjax.conversion.safetensors_files import FileType, write_safetensors
from gptjax.conversion.tokenizer_writing import write_tokenizer_files
from gptjax.conversion.weights import Weights, to_huggingface
from gptjax.model.places import leaves
from gptjax.tokenizers.gpt1 import SPECIAL_TOKENS

GENERATION = "generation_config.json"
INITIAL_SCALE = 0.02  # standard deviation of the initial weights, of GPT-1 and of GPT-2
_ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "openai-gpt": "OpenAIGPTLMHeadModel"}
_GELU = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}
NO_CARD = ModelCard()


def write_huggingface(
    weights: Weights,
    out: Path,
    dtype: FileType = "float32",
    card: ModelCard = NO_CARD,
    reader: Reader = "transformers",
) -> list[str]:
    """Write a directory that transformers loads; returns notes for the user, a sentence each.

    The vocabulary's padding is left out. A head that classifies is in a file of its own.
    Biases that the model does not have are written as zeros, because transformers insists on them.
    `reader` is the program that is to serve the model. Raises `UserError`, with nothing written, if
    it would compute something else, if `out` is there and is not an empty directory, or if a
    library is missing.
    """
    require_free(out)
    model = weights.model
    notes = [*weights.notes, *require_reader(reader, model, weights.tokenizer)]
    special = _special_tokens(weights)
    rows = (model.n_vocab or 0) + len(special)
    full = _with_every_bias(model)
    arrays = _with_zeros(weights.arrays, model, full)
    if absent := [leaf.name for leaf in leaves(full) if leaf.name not in weights.arrays]:
        notes.append(f"transformers insists on biases: wrote zeros for {', '.join(absent)}")
    eot = weights.tokenizer.eot_id
    has_end = eot < rows  # nanoGPT's models of characters have none
    ends = {f"{name}_token_id": eot if has_end else None for name in ("bos", "eos")}
    with new_directory(out) as temporary:
        settings = settings_of(model, rows, dtype) | ends
        _write(temporary / CONFIG, settings)
        _write(temporary / GENERATION, {**ends, "pad_token_id": ends["eos_token_id"]})
        write_tokenizer_files(weights.tokenizer, temporary, model.n_ctx, special, has_end)
        write_safetensors(to_huggingface(arrays, full, rows), temporary, dtype)
        if card.config:
            notes += write_classifier(arrays, card.config, temporary)
        if card.curve:
            shutil.copyfile(card.curve, temporary / card.curve.name)
        text = card_text(card, weights, out.name, dtype, notes)
        (temporary / CARD).write_text(text, "utf-8")
    return notes


def settings_of(model: ModelConfig, rows: int, dtype: FileType = "float32") -> dict[str, Any]:
    """config.json of a model with `rows` ids, without the ids that begin and end a text.

    Older programs, and llama.cpp's converter, look for `n_ctx`, newer ones for `n_positions`.
    The section `gptjax` has the switches for which there is no field.

    >>> settings_of(ModelConfig(n_vocab=9), 9)["n_ctx"]
    1024
    """
    kind: ModelType = "gpt2" if model.norm == "pre" else "openai-gpt"
    if kind == "gpt2":
        activation = {"activation_function": _GELU[model.activation], "n_inner": None}
        activation |= {"scale_attn_weights": True, "use_cache": True}
    else:
        activation = {"afn": "gelu"}  # its name there for the tanh form
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": rows,
        "n_positions": model.n_ctx,
        "n_ctx": model.n_ctx,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        **activation,
        "layer_norm_epsilon": EPSILON,
        "initializer_range": INITIAL_SCALE,
        "embd_pdrop": model.embd_pdrop,
        "attn_pdrop": model.attn_pdrop,
        "resid_pdrop": model.resid_pdrop,
        "tie_word_embeddings": model.tied_head,
        "torch_dtype": dtype,
        OWN_SECTION: {switch: getattr(model, switch) for switch in OWN_SWITCHES},
    }


def _special_tokens(weights: Weights) -> list[str]:
    """The names of ids after the vocabulary; GPT-1's are in the order start, delimiter, extract."""
    return list(SPECIAL_TOKENS)[: weights.model.n_special]


def _with_every_bias(model: ModelConfig) -> ModelConfig:
    return replace(model, bias=True, qkv_bias=True)


def _with_zeros(
    arrays: dict[str, np.ndarray], model: ModelConfig, full: ModelConfig
) -> dict[str, np.ndarray]:
    """The arrays, and zeros for those that only the full model has."""
    there = {leaf.name for leaf in leaves(model)}
    absent = [leaf for leaf in leaves(full) if leaf.name not in there]
    return arrays | {leaf.name: np.zeros(leaf.shape, np.float32) for leaf in absent}


def _write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", "utf-8")

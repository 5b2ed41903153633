"""Checkpoints of nanoGPT: `ckpt.pt`, in.

Its train.py saves a dictionary: `model` (the state), `model_args`, `iter_num`, `best_val_loss`,
`config`, and the optimizer, which stays behind. Its network is GPT-2's with GELU in its exact form;
checkpoints from before the middle of 2023 were trained with the tanh form, and do not say so: a run
that starts from them takes it with --model.activation gelu_tanh. Arrays have Hugging Face's names,
with matrices as (out, in).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.tokenizer_choice import choose_tokenizer, vocabulary_notes
from gptjax.conversion.torch_files import load_torch_file, pickled_words, tensor_to_numpy
from gptjax.conversion.weights import Weights, from_huggingface
from gptjax.model.places import leaves
from gptjax.tokenizers.nanogpt import META

CHECKPOINT = "ckpt.pt"  # in nanoGPT's out_dir
_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and of DistributedDataParallel
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
# of its GPTConfig: the oldest checkpoints lack some
_DEFAULTS = dict(zip(_SIZES, (12, 12, 768, 1024, 50304), strict=True), bias=True, dropout=0.0)
_KERNELS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_NARROWEST = 2  # bytes of a parameter, in half precision
_TABLE, _HEAD = "transformer.wte.weight", "lm_head.weight"


def is_nanogpt(path: Path) -> bool:
    """Whether a file, or `ckpt.pt` of a directory, is a checkpoint of nanoGPT's form."""
    words = pickled_words(_file_of(path))
    return b"model_args" in words and b"block_size" in words


def read_nanogpt(path: Path, tokenizer: str | None) -> Weights:
    """Read a checkpoint of nanoGPT: the file, or the directory with `ckpt.pt`.

    `tokenizer` is a name, a JSON file or nanoGPT's meta.pkl. Without it a meta.pkl beside the
    checkpoint or in nanoGPT's data/ counts, and then GPT-2's BPE for 50,257 ids or 50,304. Rows
    beyond the tokenizer's ids are dropped. Raises `UserError` without torch, for a damaged file,
    for one that asks for code, and where arrays, settings and tokenizer do not fit each other.
    """
    file = _file_of(path)
    checkpoint = load_torch_file(file)
    args = _checked_args(checkpoint, file)
    state = _plain_names(checkpoint["model"], file)
    beside = [file.parent / META, *_data_of(checkpoint, file)]
    found, kept = choose_tokenizer(args["vocab_size"], tokenizer, beside, file)
    model = ModelConfig(
        n_layer=args["n_layer"],
        n_head=args["n_head"],
        n_embd=args["n_embd"],
        n_ctx=args["block_size"],
        n_vocab=kept,
        bias=args["bias"],
        qkv_bias=args["bias"],
        tied_head=_is_tied(state),
        activation="gelu_erf",
        dtype="float32",
        embd_pdrop=float(args["dropout"]),
        attn_pdrop=float(args["dropout"]),
        resid_pdrop=float(args["dropout"]),
    )
    _doubt_size(model, file)
    if model.tied_head:
        state.pop(_HEAD, None)
    arrays = from_huggingface(_theirs(state, args["vocab_size"], kept), model, str(file))
    source = f"the nanoGPT checkpoint {file}{_progress(checkpoint)}"
    notes = vocabulary_notes(found, args["vocab_size"])
    return Weights(model, arrays, found, source, notes)


def _file_of(path: Path) -> Path:
    return path / CHECKPOINT if path.is_dir() else path


def _checked_args(checkpoint: Any, file: Path) -> dict[str, Any]:
    """`model_args` with nanoGPT's defaults for those that older versions lack."""
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(key), dict) for key in ("model", "model_args")
    ):
        keys = list(checkpoint) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(
            f"{file} is not a checkpoint of nanoGPT: expected the dictionaries model and "
            f"model_args, found {keys!s:.200}"
        )
    args = {**_DEFAULTS, **checkpoint["model_args"]}
    wrong = [f"{n} {args[n]!r:.40}" for n in _SIZES if type(args[n]) is not int or args[n] < 1]
    if type(args["bias"]) is not bool:
        wrong.append(f"bias {args['bias']!r:.40}")
    if not isinstance(args["dropout"], int | float) or not 0 <= args["dropout"] < 1:
        wrong.append(f"dropout {args['dropout']!r:.40}")
    if not wrong and args["n_embd"] % args["n_head"]:
        wrong.append(f"n_head {args['n_head']}, which does not divide n_embd {args['n_embd']}")
    if wrong:
        raise UserError(
            f"{file} is damaged, or not nanoGPT's: its model_args have {', '.join(wrong)}"
        )
    return args


def _plain_names(state: Mapping[Any, Any], file: Path) -> dict[str, np.ndarray]:
    """The arrays of a state under nanoGPT's names, without wrappers' prefixes and causal masks."""
    arrays = {}
    for full_name, tensor in state.items():
        name = str(full_name)
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name.endswith(".attn.bias"):  # the causal mask, where torch had no flash attention
            continue
        if (array := tensor_to_numpy(tensor)) is None:
            raise UserError(
                f"{file} is damaged, or not nanoGPT's: {name!r:.80} is not a dense tensor of "
                "floating-point numbers"
            )
        arrays[name] = array
    return arrays


def _is_tied(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the head is the table, as nanoGPT has it; forks untie it."""
    head, table = state.get(_HEAD), state.get(_TABLE)
    if head is None or table is None:
        return True
    return np.array_equal(head, table, equal_nan=True)


def _doubt_size(model: ModelConfig, file: Path) -> None:
    """Raise `UserError`, before anything is allocated, if a file is too small for its settings."""
    numbers = sum(math.prod(leaf.published_shape) for leaf in leaves(model))
    if (size := file.stat().st_size) < numbers * _NARROWEST:
        raise UserError(
            f"{file} is damaged, or not nanoGPT's: its model_args describe {numbers:,} parameters, "
            f"and it has {size:,} bytes"
        )


def _theirs(state: Mapping[str, np.ndarray], rows: int, kept: int) -> dict[str, np.ndarray]:
    """Arrays as Hugging Face has them: matrices as (in, out), tables without rows that only pad."""
    theirs = {}
    for name, array in state.items():
        if name in (_TABLE, _HEAD):
            theirs[name] = array[:kept] if array.shape[:1] == (rows,) else array
        elif name.endswith(_KERNELS):
            theirs[name] = array.T
        else:
            theirs[name] = array
    return theirs


def _data_of(checkpoint: Mapping[str, Any], file: Path) -> list[Path]:
    """Where nanoGPT's sample.py looks for characters: data/DATASET/meta.pkl beside out_dir."""
    settings = checkpoint.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    if not isinstance(dataset, str) or Path(dataset).name != dataset:
        return []
    return [file.absolute().parent.parent / "data" / dataset / META]


def _progress(checkpoint: Mapping[str, Any]) -> str:
    """How far it was trained, in words, as far as the checkpoint says it."""
    step, loss = checkpoint.get("iter_num"), checkpoint.get("best_val_loss", "")
    words = f" of iteration {step:,}" if type(step) is int else ""
    try:
        return f"{words}, best validation loss {float(loss):.4f}"
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return words

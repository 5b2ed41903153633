"""The original files of GPT-1, in: params_0.npy to params_9.npy, and params_shapes.json.

They belong to openai/finetune-transformer-lm (`model/`). All arrays are joined, flattened, into one
line of float32, which is cut into ten parts of about the same size; params_shapes.json lists the
shapes in order. First come the positions and the tokens, then twelve arrays for each layer. The
kernels are convolutions of width 1, hence their first dimension.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.config import ModelConfig
from gptjax.conversion.weights import Weights, from_huggingface
from gptjax.tokenizers.gpt1 import FILES, gpt1
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import make_tokenizer

SHAPES = "params_shapes.json"
PARTS = 10
HEADS = 12  # the files do not say it; those of the paper's model
# the twelve arrays of a layer, in order, under Hugging Face's names
_LAYER = [
    f"{module}.{kind}"
    for module in ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    for kind in ("weight", "bias")
]
_TOP = ["transformer.positions_embed.weight", "transformer.tokens_embed.weight"]


def is_openai(path: Path) -> bool:
    """Whether a directory has the list of shapes of OpenAI's GPT-1."""
    return (path / SHAPES).is_file()


def read_openai(path: Path, tokenizer: str | None = None) -> Weights:
    """Read OpenAI's files of GPT-1 from a directory.

    The tokenizer is `tokenizer`, else that of encoder_bpe_40000.json and vocab_40000.bpe in the
    directory, else `gpt1`. Raises `UserError` if a part is missing or damaged, if sizes and shapes
    differ, or if the tokenizer does not fit.
    """
    shapes = _read_shapes(path / SHAPES)
    flat = np.concatenate([_read_part(path / f"params_{i}.npy") for i in range(PARTS)])
    expected = sum(map(math.prod, shapes))
    if len(flat) != expected:
        raise UserError(
            f"the parts in {path} have {len(flat):,} numbers, but {SHAPES} has room for "
            f"{expected:,}: fetch them again from finetune-transformer-lm"
        )
    theirs = dict(_cut(flat, shapes))
    positions, tokens = (theirs[name].shape for name in _TOP)
    found = _tokenizer(path, tokenizer)
    if found.n_vocab != tokens[0]:
        raise UserError(
            f"the tokenizer has {found.n_vocab:,} ids, but the model in {path} has {tokens[0]:,}: "
            "give the one of its training with --tokenizer"
        )
    model = ModelConfig(
        n_layer=(len(shapes) - len(_TOP)) // len(_LAYER),
        n_head=HEADS,
        n_embd=tokens[-1],
        n_ctx=positions[0],
        n_vocab=tokens[0],
        norm="post",
        final_norm=False,
        scale_residual_init=False,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        resid_pdrop=0.1,
        dtype="float32",
    )
    if model.n_embd % HEADS:
        raise UserError(f"{path} is {model.n_embd} wide, which {HEADS} heads do not divide")
    arrays = from_huggingface(theirs, model, str(path))
    return Weights(model, arrays, found, f"OpenAI's files of GPT-1 in {path}")


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    require_fetched(path)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: OpenAI's GPT-1 is a directory with it and params_0.npy to "
            f"params_{PARTS - 1}.npy"
        )
    try:
        shapes = [tuple(map(int, shape)) for shape in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a list of shapes ({error}): fetch it again") from error
    layers, rest = divmod(len(shapes) - len(_TOP), len(_LAYER))
    if layers < 1 or rest or any(size < 1 for shape in shapes for size in shape):
        raise UserError(
            f"{path} has {len(shapes)} shapes, expected {len(_TOP)} and {len(_LAYER)} a layer, "
            "none of them empty"
        )
    return shapes


def _read_part(path: Path) -> np.ndarray:
    """The numbers of one part, mapped from the disk."""
    require_fetched(path)
    try:
        part = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: GPT-1 has the parts params_0.npy to params_{PARTS - 1}.npy"
        ) from error
    except Exception as error:  # whatever a damaged header raises
        raise UserError(
            f"{path} is not an array of NumPy, or was cut short: fetch it again"
        ) from error
    if part.dtype != np.float32:
        raise UserError(f"{path} holds {part.dtype}, expected float32: fetch it again")
    return part.reshape(-1)


def _cut(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays under Hugging Face's names; a kernel [1, in, out] loses its first dimension."""
    layers = (len(shapes) - len(_TOP)) // len(_LAYER)
    names = [*_TOP, *(f"transformer.h.{i}.{name}" for i in range(layers) for name in _LAYER)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    for name, shape, part in zip(names, shapes, np.split(flat, ends[:-1]), strict=True):
        is_convolution = len(shape) == 3 and shape[0] == 1
        yield name, part.reshape(shape[1:] if is_convolution else shape)


def _tokenizer(path: Path, given: str | None) -> Tokenizer:
    if given is not None:
        return make_tokenizer(given)
    beside = any(all((path / name).is_file() for name in pair) for pair in FILES)
    return gpt1(path if beside else None)

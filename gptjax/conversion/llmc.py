"""Model files of llm.c, in and out: a header of 256 int32, then every array without a gap.

The layout is that of llm.c's train_gpt2.py and dev/eval/export_hf.py. Matrices are (out, in), so
each is transposed on its way. llm.c computes one network, GPT-2's: with every bias, a tied head and
the tanh form of GELU.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import replaced, require_fetched, write_atomically
from gptjax.config import ModelConfig
from gptjax.conversion.tokenizer_choice import choose_tokenizer, vocabulary_notes
from gptjax.conversion.weights import Weights
from gptjax.data.foreign import format_by_magic
from gptjax.data.shards import HEADER_BYTES, HEADER_INTS, format_of, read_header
from gptjax.model.places import leaves

MODEL_FILE = "model.bin"  # in a directory
MODEL_MAGIC = 20240326
VERSIONS = {3: "float32", 5: "bfloat16"}
_STORED = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}
_ORDER = (
    *("wte/embedding", "wpe/embedding", "h/ln_1/scale", "h/ln_1/bias"),
    *("h/attn/c_attn/kernel", "h/attn/c_attn/bias", "h/attn/c_proj/kernel", "h/attn/c_proj/bias"),
    *("h/ln_2/scale", "h/ln_2/bias", "h/mlp/c_fc/kernel", "h/mlp/c_fc/bias"),
    *("h/mlp/c_proj/kernel", "h/mlp/c_proj/bias", "ln_f/scale", "ln_f/bias"),
)


class _Header(NamedTuple):
    """The first eight numbers of a model file, under llm.c's names."""

    magic: int
    version: int
    max_seq_len: int
    vocab_size: int
    num_layers: int
    num_heads: int
    channels: int
    padded_vocab_size: int

    def model(self, n_vocab: int) -> ModelConfig:
        """The network that llm.c computes, with so many ids."""
        return ModelConfig(
            n_layer=self.num_layers,
            n_head=self.num_heads,
            n_embd=self.channels,
            n_ctx=self.max_seq_len,
            n_vocab=n_vocab,
            activation="gelu_tanh",
            dtype="float32",
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array under our names, in the file's order, with kernels as (out, in)."""
        shape = {leaf.name: leaf.shape for leaf in leaves(self.model(self.vocab_size))}
        shape["wte/embedding"] = (self.padded_vocab_size, self.channels)
        return {
            name: (shape[name][0], *reversed(shape[name][1:]))
            if name.endswith("/kernel")
            else shape[name]
            for name in _ORDER
        }


def is_llmc(path: Path) -> bool:
    """Whether a file, or `model.bin` of a directory, begins like a model of llm.c."""
    try:
        return read_header(_file_of(path))[:1].tolist() == [MODEL_MAGIC]
    except (UserError, ValueError):
        return False


def read_llmc(path: Path, tokenizer: str | None) -> Weights:
    """Read a model of llm.c: a file, or a directory with `model.bin`; bfloat16 becomes float32.

    Rows that pad the vocabulary are dropped. The file is mapped, so it is never held twice. Raises
    `UserError` for anything but a whole file of version 3 or 5, and for a tokenizer that is missing
    or does not fit.
    """
    file = _file_of(path)
    header = _checked_header(file)
    found, kept = choose_tokenizer(header.vocab_size, tokenizer, [_tokenizer_beside(file)], file)
    model, dtype = header.model(kept), VERSIONS[header.version]
    mapped, arrays, start = np.memmap(file, _STORED[dtype], "r", HEADER_BYTES), {}, 0
    for leaf in leaves(model):
        shape = header.shapes[leaf.name]
        stored = mapped[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
        stored = stored if dtype == "float32" else stored.view(jnp.bfloat16)
        array = np.zeros(leaf.shape, np.float32)
        array[: len(array) - leaf.padding] = _turned(leaf.name, stored[: len(array) - leaf.padding])
        arrays[leaf.name] = array
    notes = vocabulary_notes(found, header.vocab_size)
    return Weights(model, arrays, found, f"the llm.c model {file} ({dtype})", notes)


def write_llmc(
    weights: Weights, out: Path, dtype: Literal["float32", "bfloat16"] = "float32"
) -> list[str]:
    """Write a model of llm.c, and its tokenizer's JSON beside it; returns notes for the user.

    `out` is a file whose name ends in `.bin`, or a directory, in which it is `model.bin`. Version 3
    is float32, version 5 bfloat16, rounded to the nearest even. Absent biases are written as zeros,
    which compute the same. Raises `UserError`, before anything is written, if the file exists or if
    llm.c would compute another function of the weights.
    """
    model = weights.model
    if reasons := list(_reasons_against(model)):
        raise UserError(
            f"llm.c cannot hold {weights.source}: {'; '.join(reasons)}. llm.c computes GPT-2 and "
            "nothing else: export with --to huggingface"
        )
    file = out if out.suffix == ".bin" else out / MODEL_FILE
    _make_room(file)
    version = next(number for number, name in VERSIONS.items() if name == dtype)
    header = _Header(
        MODEL_MAGIC, version, model.n_ctx, model.n_vocab or 0, model.n_layer, model.n_head,
        model.n_embd, model.padded_vocab,
    )  # fmt: skip
    numbers = np.zeros(HEADER_INTS, "<i4")
    numbers[: len(header)] = header
    # first, so that a model whose writing was cut short is never there without it
    write_atomically(_tokenizer_beside(file), weights.tokenizer.to_json().encode())
    with replaced(file) as opened:
        opened.write(numbers.tobytes())
        for name, shape in header.shapes.items():
            array = weights.arrays.get(name)
            # a layer at a time, so that no second copy of a large model is ever held
            for part in np.zeros(shape, np.float32) if array is None else _turned(name, array):
                stored = part if dtype == "float32" else part.astype(jnp.bfloat16).view(np.uint16)
                opened.write(stored.astype(_STORED[dtype]).tobytes())
    absent = [name for name in header.shapes if name not in weights.arrays]
    return [f"wrote zeros for the absent biases {', '.join(absent)}"] if absent else []


def _file_of(path: Path) -> Path:
    return path / MODEL_FILE if path.is_dir() else path


def _tokenizer_beside(file: Path) -> Path:
    """Where the tokenizer of a model file lies; llm.c ignores it."""
    return file.with_suffix(".tokenizer.json")


def _make_room(file: Path) -> None:
    """Make the directory of a new file; raises `UserError` if a name is taken."""
    for path in (file, _tokenizer_beside(file)):
        if path.exists():
            raise UserError(f"{path} exists: choose another --out, or move it away")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{file.parent} is not a directory: choose another --out") from error


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """A view with the last two dimensions of a kernel exchanged; other arrays as they are."""
    return array.swapaxes(-1, -2) if name.endswith("/kernel") else array


def _reasons_against(model: ModelConfig) -> Iterator[str]:
    """Why llm.c would compute something else from these weights."""
    if model.norm != "pre" or not model.final_norm:
        yield "its norms are GPT-1's, after the residual sums and without a final one"
    if not model.tied_head:
        yield "its head is a matrix of its own, and llm.c's is the token embedding"
    if model.activation != "gelu_tanh":
        yield f"its activation is {model.activation}, and llm.c's is gelu_tanh"
    if model.n_classes:
        yield f"it has a head for {model.n_classes} classes (n_classes), and llm.c's has none"
    if model.n_special:
        yield (
            f"it has {model.n_special} special tokens beside its vocabulary (n_special), and "
            "llm.c's files have no rows for them"
        )


def _checked_header(file: Path) -> _Header:
    """The header of a whole model file; raises `UserError` if any of it is wrong."""
    if not file.is_file():
        raise UserError(f"{file} is not a file: expected a model of llm.c, such as gpt2_124M.bin")
    require_fetched(file)
    numbers = read_header(file)
    with file.open("rb") as opened:
        beginning = opened.read(HEADER_BYTES)
    if what := _other_format(file, beginning):
        raise UserError(f"{file} is {what}, expected a model of llm.c")
    if 0 < len(numbers) < HEADER_INTS and numbers[0] == MODEL_MAGIC:
        raise UserError(f"{file} is truncated: it ends within its header; fetch it again")
    if len(numbers) < HEADER_INTS or numbers[0] != MODEL_MAGIC:
        found = f"magic number {numbers[0]}" if len(numbers) else "no magic number"
        raise UserError(f"{file} has {found}, expected {MODEL_MAGIC} of llm.c's models")
    header = _Header(*numbers[: len(_Header._fields)].tolist())
    if header.version not in VERSIONS:
        known = " and ".join(f"{number} ({dtype})" for number, dtype in VERSIONS.items())
        raise UserError(
            f"{file} has version {header.version} of llm.c's models, expected {known}: write it "
            "again with a newer llm.c"
        )
    wrong = [f"{name} {value}" for name, value in header._asdict().items() if value < 1]
    if header.vocab_size > header.padded_vocab_size:
        wrong.append(f"vocab_size {header.vocab_size} above padded_vocab_size")
    if not wrong and header.channels % header.num_heads:
        wrong.append(f"num_heads {header.num_heads}, which does not divide channels")
    if wrong:
        raise UserError(f"{file} is damaged: its header has {', '.join(wrong)}")
    width = _STORED[VERSIONS[header.version]].itemsize
    expected = HEADER_BYTES + width * sum(map(math.prod, header.shapes.values()))
    if (size := file.stat().st_size) != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(
            f"{file} is {what}: it has {size:,} bytes, and its header asks for {expected:,}: "
            "fetch it again"
        )
    return header


def _other_format(file: Path, beginning: bytes) -> str | None:
    """What a file is, if its beginning shows another format; None if it does not."""
    if file.stat().st_size >= HEADER_BYTES and (dtype := format_of(file)):
        return f"a shard of {dtype} tokens (python -m gptjax.prepare adopts those)"
    return format_by_magic(beginning)

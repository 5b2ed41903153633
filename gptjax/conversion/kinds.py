"""The table of formats that come in: how each is recognised, and what reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from gptjax.base.errors import UserError
from gptjax.config.schema import Config
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.llmc import is_llmc, read_llmc
from gptjax.conversion.nanogpt import is_nanogpt, read_nanogpt
from gptjax.conversion.openai import is_openai, read_openai
from gptjax.conversion.weights import Weights
from gptjax.runs.directory import RunDir

Kind = Literal["huggingface", "openai", "nanogpt", "llmc"]


class Format(NamedTuple):
    """A format of models: what it is, a quick look that never raises, and its reader."""

    words: str
    is_at: Callable[[Path], bool]
    read: Callable[[Path, str | None], Weights]


FORMATS: dict[Kind, Format] = {
    "huggingface": Format(
        "a Hugging Face directory (config.json and model.safetensors or pytorch_model.bin)",
        is_huggingface,
        read_huggingface,
    ),
    "openai": Format(
        "a directory of OpenAI's GPT-1 (params_shapes.json and params_0.npy to params_9.npy)",
        is_openai,
        read_openai,
    ),
    "nanogpt": Format("a checkpoint of nanoGPT (ckpt.pt)", is_nanogpt, read_nanogpt),
    "llmc": Format("a model of llm.c (a .bin file)", is_llmc, read_llmc),
}

"""The table of formats that come in: how each is recognised, and what reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.conversion.hub_models import fetch_model, is_model_name
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.huggingface_config import CONFIG
from gptjax.conversion.llmc import is_llmc, read_llmc
from gptjax.conversion.nanogpt import is_nanogpt, read_nanogpt
from gptjax.conversion.openai import is_openai, read_openai
from gptjax.conversion.stored_arrays import SAFETENSORS, TORCH
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


def read_model(source: str, kind: Kind | None = None, tokenizer: str | None = None) -> Weights:
    """Read a model from a path, or a Hugging Face model from the hub by its name.

    The format is found out unless `kind` names it. `tokenizer` is the name or the JSON file of one
    of ours, where the model has none or another is meant. Raises `UserError`.
    """
    path = Path(source).expanduser()
    if not path.exists() and is_model_name(source) and kind in (None, "huggingface"):
        path, kind = _fetch(source), "huggingface"
    return FORMATS[find_kind(path, kind)].read(path, tokenizer)


def _fetch(name: str) -> Path:
    try:
        return fetch_model(name)
    except UserError as error:
        raise UserError(f"there is no {name} on this machine, and {error}") from error


def find_kind(path: Path, kind: Kind | None = None) -> Kind:
    """The format of a file or directory; `kind` decides where several could be meant.

    Raises `UserError` if nothing is there, or nothing that is known.
    """
    if not path.exists():
        raise UserError(
            f"there is no {path}: give a file or a directory, or the name of a model on the hub, "
            "such as openai-community/gpt2"
        )
    if kind is not None:
        return kind
    if path.name in (SAFETENSORS, TORCH) and (path.parent / CONFIG).is_file():
        raise UserError(f"{path} is only the weights of a model: give its directory, {path.parent}")
    if RunDir(path).has_checkpoint:
        raise UserError(
            f"{path} is a run of gptjax already: use it as it is, or export it with --run {path} "
            "--to huggingface"
        )
    found: list[Kind] = [name for name, known in FORMATS.items() if known.is_at(path)]
    if len(found) == 1:
        return found[0]
    if found:
        choices = " or ".join(f"--kind {name}" for name in found)
        raise UserError(f"{path} could be of several kinds: say which one with {choices}")
    require_fetched(path)
    listed = "".join(f"\n  - {known.words}" for known in FORMATS.values())
    raise UserError(
        f"{path} holds no model that gptjax can read; expected one of{listed}\n"
        "if it is one of them all the same, say which with --kind, and the reader says what it "
        "misses"
    )

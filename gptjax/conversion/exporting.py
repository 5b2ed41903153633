"""Export of a run, its parameters and tokenizer: to a Hugging Face directory or to llm.c."""

import shlex
from pathlib import Path

import jax
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.conversion.averages import choose_average
from gptjax.conversion.huggingface_writing import write_huggingface
from gptjax.conversion.llmc import write_llmc
from gptjax.conversion.model_card import ModelCard, data_in_words, name_of
from gptjax.conversion.new_directory import require_free
from gptjax.conversion.opening import load_run
from gptjax.conversion.reader_limits import Reader
from gptjax.conversion.safetensors_files import FileType
from gptjax.conversion.weights import Weights
from gptjax.data.manifest import read_manifest
from gptjax.generation.loaded import LoadedRun
from gptjax.runs.directory import RunDir
from gptjax.runs.metrics import read_rows
from gptjax.runs.naming import CheckpointName


def export_huggingface(
    run_name: str,
    out: Path,
    dtype: FileType = "float32",
    averaged: bool = False,
    reader: Reader = "transformers",
) -> list[str]:
    """Write the checkpoint `run_name` as a Hugging Face directory; returns notes for the user.

    `averaged` takes the running average of the parameters, which validation and generation use, in
    place of the parameters themselves. Raises `UserError`, with nothing written, if the run keeps
    none, and like `load_run` and `write_huggingface`.
    """
    require_free(out)
    weights, loaded, name, notes = _open(run_name, averaged)
    flags = [f"--dtype {dtype}"] if dtype != "float32" else []
    flags += ["--averaged"] if averaged else []
    flags += [f"--for {reader}"] if reader != "transformers" else []
    command = ["python -m gptjax.convert", f"--run {shlex.quote(name_of(run_name))}"]
    command += ["--to huggingface", f"--out {shlex.quote(name_of(out))}", *flags]
    card = _card(name.path, loaded, averaged, " ".join(command))
    return notes + write_huggingface(weights, out, dtype, card, reader)


def export_llmc(
    run_name: str,
    out: Path,
    dtype: FileType = "float32",
    averaged: bool = False,
) -> list[str]:
    """Write the checkpoint `run_name` as a model of llm.c; otherwise like `export_huggingface`.

    `out` is a new directory, or a new file whose name ends in `.bin`.
    """
    if out.suffix != ".bin":
        require_free(out)
    weights, _, _, notes = _open(run_name, averaged)
    return notes + write_llmc(weights, out, dtype)


def _open(run_name: str, averaged: bool) -> tuple[Weights, LoadedRun, CheckpointName, list[str]]:
    """The weights of a checkpoint, the run itself, the checkpoint's full name, and notes."""
    name, notes = choose_average(run_name, averaged)
    loaded = load_run(str(name), averaged)
    arrays = {
        leaf: np.asarray(x) for leaf, x in named_leaves(jax.device_get(loaded.params)).items()
    }
    config = loaded.config
    weights = Weights(config.model, arrays, loaded.tokenizer, loaded.origin, (), config.task)
    return weights, loaded, name, notes


def _card(path: Path, loaded: LoadedRun, averaged: bool, command: str) -> ModelCard:
    run_dir = RunDir(path)
    origin = loaded.origin.replace(f" {path}", f" {name_of(path)}", 1)
    curve = run_dir.curves if run_dir.curves.is_file() else None
    if not run_dir.checkpoints.is_dir():
        return ModelCard(origin, command=command)
    known = [row for row in read_rows(run_dir.metrics) if row["step"] == loaded.step]
    fields = (("training loss", "train_loss"), ("validation loss", "val_loss"))
    losses = [(what, known[-1][field]) for what, field in fields if known and field in known[-1]]
    config = loaded.config
    data = _data(loaded)
    return ModelCard(origin, config, loaded.step, averaged, data, tuple(losses), curve, command)


def _data(loaded: LoadedRun) -> str:
    """The run's data in words, with the counts of its manifest where that is at hand."""
    if loaded.step == 0:  # a converted model, whose config names no data of its own
        return ""
    words = data_in_words(loaded.config)
    try:
        manifest = read_manifest(Path(loaded.config.data.path))
    except UserError:
        return words
    tokens = manifest.splits["train"].tokens
    return f"{words}: {tokens:,} tokens to train on, fingerprint {manifest.fingerprint}"

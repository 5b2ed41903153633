"""Opens whatever holds a model: a checkpoint of a run, or a Hugging Face directory."""

from dataclasses import replace
from os import PathLike
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree, abstract_tree, as_tree
from gptjax.cluster.environment import find_devices
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.config import ModelConfig
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.pinned import pinned_base
from gptjax.conversion.resizing import refitted_and_merged
from gptjax.conversion.run_directory import config_of
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import parameter_shapes
from gptjax.model.lora import adapters_of, unadapted
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import CheckpointName


class Adapted(NamedTuple):
    """A checkpoint of adapters, apart from the model that they belong to."""

    base: LoadedRun
    """The model beneath, in float32, in its own shape."""
    adapters: Tree
    """The leaves of the adapters, and of a head that classifies."""
    cfg: ModelConfig
    """The model with adapters."""


def load_run(
    path: str | PathLike[str], averaged: bool = True, dtype: str = "float32", alone: bool = False
) -> LoadedRun:
    """Load a checkpoint: RUN or RUN@best by validation loss, RUN@latest, or RUN@STEP.

    A run that keeps a running average of its parameters gives the average, unless `averaged` is
    false. Adapters are merged into their base. A directory of Hugging Face's GPT-2 or OpenAI-GPT is
    read like a run of step 0. The parameters have the type `dtype` as soon as they are read.
    Nothing in the directory changes. With `alone` process 0 of several loads it without the others.
    Raises `UserError` if there is no run and no such directory, no such checkpoint, or a damaged
    one, or if the base of adapters is missing or has changed.
    """
    name = find_model(path)
    if is_huggingface(name.path):
        return _load_huggingface(name, dtype)
    run_dir = RunDir(name.path)
    config = run_dir.read_config()
    if config.model.lora_rank:
        return _load_merged(run_dir, name.which, averaged, dtype, alone)
    shapes = parameter_shapes(config.model)
    step, params = _restored(run_dir, name.which, shapes, averaged, dtype, alone)
    origin = f"checkpoint of step {step} in {run_dir.path}"
    return LoadedRun(config, params, run_dir.read_tokenizer(), step, origin, run_dir.path)


def load_adapted(path: str | PathLike[str], averaged: bool = True) -> Adapted:
    """Load a run of adapters without merging them; names and errors are those of `load_run`.

    Raises `UserError` if the run has no adapters.
    """
    name = find_model(path)
    run_dir = RunDir(name.path)
    if is_huggingface(name.path) or not (cfg := run_dir.read_config().model).lora_rank:
        raise UserError(f"{name.path} has no adapters: expected a run trained with model.lora_rank")
    base = load_run(str(pinned_base(name.path)))
    return Adapted(base, _adapters(run_dir, name.which, cfg, averaged)[1], cfg)


def _adapters(
    run_dir: RunDir, which: str, cfg: ModelConfig, averaged: bool, alone: bool = False
) -> tuple[int, Tree]:
    own = adapters_of(parameter_shapes(cfg), cfg)
    return _restored(run_dir, which, own, averaged, "float32", alone)


def _load_merged(run_dir: RunDir, which: str, averaged: bool, dtype: str, alone: bool) -> LoadedRun:
    config = run_dir.read_config()
    base = load_run(str(pinned_base(run_dir.path)), alone=alone)
    step, adapters = _adapters(run_dir, which, config.model, averaged, alone)

    def merge(base_params: Tree, adapters: Tree, key: Array) -> Tree:
        theirs, cfg = base.config.model, config.model
        params = refitted_and_merged(theirs, cfg, base_params, adapters, key)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    params = jax.jit(merge)(base.params, adapters, jax.random.key(config.train.seed))
    origin = f"checkpoint of step {step} in {run_dir.path}, adapters merged into {base.origin}"
    plain = replace(config, model=unadapted(config.model))
    return LoadedRun(plain, params, run_dir.read_tokenizer(), step, origin, run_dir.path)


def _restored(
    run_dir: RunDir, which: str, shapes: Tree, averaged: bool, dtype: str, alone: bool
) -> tuple[int, Tree]:
    """The step that `which` means, and its leaves of these shapes."""
    find_devices()
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True, alone=alone)
    try:
        step = checkpointer.choose(which)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
        shapes = abstract_tree(shapes, replicated(make_mesh(1)))
        return step, checkpointer.restore_params(step, shapes, averaged)
    finally:
        checkpointer.close()


def _load_huggingface(name: CheckpointName, dtype: str) -> LoadedRun:
    weights = read_huggingface(name.path)
    find_devices()
    place, arrays = replicated(make_mesh(1)), weights.arrays
    # one by one, so that memory never holds the model in two types
    placed = {
        leaf: jax.device_put(arrays.pop(leaf).astype(jnp.dtype(dtype), copy=False), place)
        for leaf in list(arrays)
    }
    origin = "; ".join((weights.source, *weights.notes))
    return LoadedRun(config_of(weights), as_tree(placed), weights.tokenizer, 0, origin)

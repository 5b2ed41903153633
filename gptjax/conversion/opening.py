"""Opens whatever holds a model: a checkpoint of a run, or a Hugging Face directory."""

from os import PathLike

import jax
import jax.numpy as jnp

from gptjax.base.tree import abstract_tree, as_tree
from gptjax.cluster.environment import find_devices
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.run_directory import config_of
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import parameter_shapes
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import CheckpointName


def load_run(
    path: str | PathLike[str], averaged: bool = True, dtype: str = "float32", alone: bool = False
) -> LoadedRun:
    """Load a checkpoint: RUN or RUN@best by validation loss, RUN@latest, or RUN@STEP.

    A run that keeps a running average of its parameters gives the average, unless `averaged` is
    false. A directory of Hugging Face's GPT-2 or OpenAI-GPT is read like a run of step 0. The
    parameters have the type `dtype` as soon as they are read. Nothing in the directory changes.
    With `alone` process 0 of several loads it without the others.
    Raises `UserError` if there is no run and no such directory, no such checkpoint, or a damaged
    one.
    """
    name = find_model(path)
    if is_huggingface(name.path):
        return _load_huggingface(name, dtype)
    run_dir = RunDir(name.path)
    find_devices()
    config, tokenizer = run_dir.read_config(), run_dir.read_tokenizer()
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True, alone=alone)
    try:
        step = checkpointer.choose(name.which)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, dtype), parameter_shapes(config.model)
        )
        shapes = abstract_tree(shapes, replicated(make_mesh(1)))
        params = checkpointer.restore_params(step, shapes, averaged)
    finally:
        checkpointer.close()
    origin = f"checkpoint of step {step} in {run_dir.path}"
    return LoadedRun(config, params, tokenizer, step, origin)


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

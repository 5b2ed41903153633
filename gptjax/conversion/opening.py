"""Opens whatever holds a model: a checkpoint of a run, or a Hugging Face directory."""

from os import PathLike

import jax

from gptjax.base.tree import abstract_tree
from gptjax.cluster.environment import find_devices
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface, read_huggingface
from gptjax.conversion.run_directory import config_of
from gptjax.conversion.weights import as_tree
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import parameter_shapes
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import CheckpointName


def load_run(path: str | PathLike[str], averaged: bool = True) -> LoadedRun:
    """Load a checkpoint: RUN or RUN@best by validation loss, RUN@latest, or RUN@STEP.

    A run that keeps a running average of its parameters gives the average, unless `averaged` is
    false. A directory of Hugging Face's GPT-2 or OpenAI-GPT is read like a run of step 0, in
    float32. Nothing in the directory changes. Raises `UserError` if there is no run and no such
    directory, no such checkpoint, or a damaged one.
    """
    name = find_model(path)
    if is_huggingface(name.path):
        return _load_huggingface(name)
    run_dir = RunDir(name.path)
    find_devices()
    config, tokenizer = run_dir.read_config(), run_dir.read_tokenizer()
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True)
    try:
        step = checkpointer.choose(name.which)
        shapes = abstract_tree(parameter_shapes(config.model), replicated(make_mesh(1)))
        params = checkpointer.restore_params(step, shapes, averaged)
    finally:
        checkpointer.close()
    origin = f"checkpoint of step {step} in {run_dir.path}"
    return LoadedRun(config, params, tokenizer, step, origin)


def _load_huggingface(name: CheckpointName) -> LoadedRun:
    weights = read_huggingface(name.path)
    find_devices()
    params = jax.device_put(as_tree(weights.arrays), replicated(make_mesh(1)))
    origin = "; ".join((weights.source, *weights.notes))
    return LoadedRun(config_of(weights), params, weights.tokenizer, 0, origin)

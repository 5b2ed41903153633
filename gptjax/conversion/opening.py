"""Opens whatever holds a model: a checkpoint of a run, by `load_run`."""

from os import PathLike

from gptjax.base.tree import abstract_tree
from gptjax.cluster.environment import find_devices
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import parameter_shapes
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import read_checkpoint_name


def load_run(path: str | PathLike[str], averaged: bool = True) -> LoadedRun:
    """Load a checkpoint: RUN or RUN@best by validation loss, RUN@latest, or RUN@STEP.

    A run that keeps a running average of its parameters gives the average, unless `averaged` is
    false. Nothing in the directory changes. Raises `UserError` if there is no run, no such
    checkpoint, or a damaged one.
    """
    name = read_checkpoint_name(path)
    run_dir = RunDir(name.path)
    run_dir.require()
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

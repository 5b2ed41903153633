"""Writes a model from elsewhere as the directory of a run, whole or not at all.

Such a run has one checkpoint, of step 0, and no state of an optimizer: generating, evaluating,
serving and exporting take it, and training starts from it with --train.init-from.
"""

import dataclasses
from pathlib import Path

from gptjax.base.tree import Tree, as_tree
from gptjax.config import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.config.schema import PRETRAIN
from gptjax.conversion.new_directory import new_directory, require_free
from gptjax.conversion.weights import Weights
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import PARAMS
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import NAMED

CONVERTED = "converted"
"""In a checkpoint's cursor: where its parameters come from. It has no data and no optimizer."""
_ROWS = 16  # windows in the batch of its config, which no training has used


def config_of(weights: Weights) -> Config:
    """The config of a run that holds this model."""
    return config_for(weights.model, weights.tokenizer, weights.task)


def config_for(model: ModelConfig, tokenizer: Tokenizer, task: str = PRETRAIN) -> Config:
    """The config of a run that no training made; only its section `model` and `task` matter.

    Other sections have defaults, as far as they fit the model's context.
    """
    return Config(
        model=model,
        data=DataConfig(tokenizer=tokenizer.name if tokenizer.name in NAMED else None),
        train=TrainConfig(batch_tokens=_ROWS * model.n_ctx, micro_batch=1),
        task=task,
    )


def write_run(weights: Weights, out: Path) -> None:
    """Write config, tokenizer and parameters as a run in `out`, which must not exist or be empty.

    The run is prepared beside `out` and renamed when all of it is on the disk, verified by its own
    signature when it is read. Raises `UserError` if `out` is taken or cannot be written.
    """
    require_free(out)
    items = {PARAMS: as_tree(weights.arrays)}
    with new_directory(out) as directory:
        write_step_0(directory, config_of(weights), weights.tokenizer, items, weights.source)


def write_step_0(
    directory: Path, config: Config, tokenizer: Tokenizer, items: dict[str, Tree], source: str
) -> None:
    """Write a run whose only checkpoint holds these trees, which come from `source`."""
    cursor = {"data": CONVERTED, CONVERTED: source}
    run_dir = RunDir(directory)
    run_dir.begin(config, tokenizer)
    checkpointer = Checkpointer(run_dir.checkpoints)
    try:
        checkpointer.save(0, items, dataclasses.asdict(config), cursor)
    finally:
        checkpointer.close()

"""One step of a run again, by any of its checkpoints: the data that it read, and their losses."""

import dataclasses
from typing import Any

import jax
import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.data.examples import Example, TaskData
from gptjax.data.keeping import read_origin
from gptjax.evaluation.replay import ReplayedRow, batches_of, documents_of, require_data_of
from gptjax.generation.loaded import LoadedRun
from gptjax.model.decoder import decoder_config
from gptjax.model.places import UNSHARDED
from gptjax.model.products import matmul_precision
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.registry import document_separator
from gptjax.training.tasks import Given, task_of


def replay(run: LoadedRun, step: int, at_once: int, dtype: str) -> list[ReplayedRow]:
    """The rows that `step` of a run read, counted from 1, the highest loss first.

    The losses are those of the loaded parameters, without dropout, `at_once` rows at a time. Rows
    that only filled a batch are left out. Raises `UserError` for a model that was not trained here,
    a step that it has not done, and data that is not there or not the same any more.
    """
    if run.directory is None or (run_dir := RunDir(run.directory)).is_converted:
        raise UserError(f"{run.origin} is no run that was trained here: it has no step to replay")
    config = run_dir.read_config()
    batches, cursor = batches_of(run_dir, config, step)
    data = _data_of(config, run, run_dir)
    require_data_of(cursor, data)
    order = data.along(batches).shuffled(config.train.seed)
    first, count = batches.rows_before(step - 1), batches.rows(step - 1)
    numbers = range(first, first + count)
    batch = order.batch(numbers, numbers)
    losses, weights = _losses(run, config, batch, at_once, dtype)
    found = []
    for index, row in enumerate(numbers):
        if origin := order.origin(row):
            example = {name: x[index] for name, x in batch.items()}
            text = documents_of(example, run.tokenizer)
            found.append(ReplayedRow(row, losses[index], weights[index], origin, text))
    return sorted(found, key=lambda row: -row.loss)


def _data_of(config: Config, run: LoadedRun, run_dir: RunDir) -> TaskData:
    """The data of a run, which a fine-tuning has kept."""
    task = task_of(config)
    if task.reads_shards:
        return task.examples(config, Given())
    if (origin := read_origin(run_dir.path)) is not None:
        config = _as_asked(config, origin.settings)
    return task.examples(config, Given(run.tokenizer, run_dir.path))


def _as_asked(config: Config, settings: dict[str, Any]) -> Config:
    """The config with the settings that made the examples, before these completed it."""
    labels, instruct = tuple(settings["classify"][-1]), type(config.instruct)(*settings["instruct"])
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, context=settings["context"]),
        classify=dataclasses.replace(config.classify, labels=labels),
        instruct=instruct,
    )


def _losses(
    run: LoadedRun, config: Config, batch: Example, at_once: int, dtype: str
) -> tuple[list[float], list[float]]:
    """The mean loss and the weight of each row."""
    model = decoder_config(run.config.model, dtype)
    task, masked = task_of(config), config.data.document_mask
    eot_id = document_separator(run.tokenizer) if masked else None
    losses = task.losses(dataclasses.replace(config, model=model), UNSHARDED, eot_id)

    @jax.jit
    def measure(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        weights = losses.weights(batch)
        with jax.default_matmul_precision(matmul_precision(model, jax.devices()[0])):
            measured = losses.row_losses(params, {**batch, "weights": weights})
        return measured["loss"], weights.reshape(len(weights), -1).sum(1)

    found, size = [], len(next(iter(batch.values())))
    for start in range(0, size, at_once):
        # the last part is filled up with its last row, so that one program is enough
        numbers = np.minimum(np.arange(start, start + at_once), size - 1)
        part = {name: x[numbers] for name, x in batch.items()}
        loss_B, weight_B = jax.device_get(measure(run.params, part))
        found += zip(loss_B.tolist(), weight_B.tolist(), strict=True)
    means = [loss / (weight or 1.0) for loss, weight in found[:size]]
    return means, [weight for _, weight in found[:size]]

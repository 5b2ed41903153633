"""The kinds of training: a row of TASKS has examples and losses; no other module knows either.

A row here and a config make a new kind of training; there is never a second trainer. Loader, feed,
step, loop, evaluation and checkpoint take whatever batch the examples of a task make.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.config import Config, ModelConfig
from gptjax.config.schema import PRETRAIN
from gptjax.data.corpus import Corpus
from gptjax.data.examples import Example, TaskData
from gptjax.model.attention import document_numbers
from gptjax.model.gpt import GPT, logits
from gptjax.model.losses import cross_entropy, cross_entropy_rows, token_losses
from gptjax.model.parallel import copy_to_tensor, gathered
from gptjax.model.places import UNSHARDED, ModelSharding

Params = dict[str, Any]
Batch = dict[str, Array]
EVALUATION_CHUNK = 2048  # tokens; evaluation never needs all logits at once


def own_weights(batch: Batch) -> Array:
    """The weights that come with the examples."""
    return batch["weights"]


class Losses(NamedTuple):
    """The losses of a task over rows [B], as weighted sums in nats, never means.

    `loss` and `row_losses` read the weight of each target from `batch["weights"]`. The step has
    put the result of `weights` there, divided by the weight of the whole step and scaled: only the
    step knows that weight, and it is needed before anything is differentiated.
    """

    loss: Callable[[Params, Batch, Array | None], Array]
    """(params, batch, dropout key or None) -> the sum, for gradients; a key turns dropout on."""
    row_losses: Callable[[Params, Batch], Array]
    """(params, batch) -> one sum a row [B], for evaluation."""
    weights: Callable[[Batch], Array] = own_weights
    """batch -> the weight of each target, float32; [B, ...], or [A, B, ...] of a whole step."""


class Task(NamedTuple):
    """A kind of training."""

    examples: Callable[[Config], TaskData]
    """Open and check the data of a config; raises `UserError`."""
    form: Callable[[Config], Example]
    """An example with the shapes and types of all, made without data, for compiling."""
    losses: Callable[[Config, ModelSharding, int | None], Losses]
    """The losses of a config whose vocabulary is known, for parameters divided as the second
    argument says. Given the id of the token that begins a document, attention stays inside
    documents."""
    reads_shards: bool = False
    """Whether the data is a prepared directory, which must exist, or be made, before the run."""


def language_modelling(
    cfg: ModelConfig,
    loss_chunk_tokens: int = 0,
    split: ModelSharding = UNSHARDED,
    eot_id: int | None = None,
) -> Losses:
    """Predict every next token: `tokens` [B, T + 1] against themselves, shifted by one.

    All targets have equal weight, unless the examples have `weights` [B, T].

    The training loss holds the logits of `loss_chunk_tokens` tokens at once; 0 means all. `split`
    says how the parameters are divided, inside a `shard_map`. With an `eot_id` attention stays
    inside documents, each of which begins at that token.
    """
    model, n_vocab = GPT(cfg, split), cfg.n_vocab or 0

    def features(params: Params, batch: Batch, key: Array | None) -> tuple[Array, Array]:
        rngs = None if key is None else {"dropout": key}
        inputs_BT = batch["tokens"][:, :-1]
        # a block gathers its own parameters, one layer at a time
        whole = gathered({k: v for k, v in params.items() if k != "h"}, split, cfg)
        found: Any = model.apply(
            {"params": {**whole, "h": params["h"]}},
            inputs_BT,
            train=key is not None,
            documents_BT=None if eot_id is None else document_numbers(inputs_BT, eot_id),
            rngs=rngs,
            method="features",
        )
        x_BTD, head_VD = found
        return copy_to_tensor(x_BTD, split), head_VD

    def loss(params: Params, batch: Batch, key: Array | None) -> Array:
        x_BTD, head_VD = features(params, batch, key)
        targets_BT, weights_BT = batch["tokens"][:, 1:], batch["weights"]
        if loss_chunk_tokens == 0 and split.tensor == 1:
            logits_BTV = logits(x_BTD, head_VD, n_vocab)
            return cross_entropy_rows(logits_BTV, targets_BT, weights_BT).sum()
        chunk = loss_chunk_tokens or targets_BT.size
        return cross_entropy(x_BTD, head_VD, targets_BT, weights_BT, n_vocab, chunk, split)

    def row_losses(params: Params, batch: Batch) -> Array:
        x_BTD, head_VD = features(params, batch, None)
        targets_BT = batch["tokens"][:, 1:]
        losses_BT = token_losses(x_BTD, head_VD, targets_BT, n_vocab, EVALUATION_CHUNK, split)
        return (losses_BT * batch["weights"]).sum(1)

    def weights(batch: Batch) -> Array:
        if "weights" in batch:
            return own_weights(batch)
        return jnp.ones(batch["tokens"][..., 1:].shape, jnp.float32)

    return Losses(loss, row_losses, weights)


def _next_tokens(config: Config, split: ModelSharding, eot_id: int | None) -> Losses:
    return language_modelling(config.model, config.train.loss_chunk_tokens, split, eot_id)


def _window(config: Config) -> Example:
    return {"tokens": np.zeros(config.context + 1, np.int32)}


TASKS = {PRETRAIN: Task(Corpus, _window, _next_tokens, reads_shards=True)}


def task_of(config: Config) -> Task:
    """The row of `config.task`; raises a `ConfigError` that names the known tasks."""
    if config.task not in TASKS:
        near = f"{did_you_mean(config.task, TASKS)}; expected one of {', '.join(TASKS)}"
        raise ConfigError([f"unknown task {config.task!r}{near}"])
    return TASKS[config.task]

"""What is being learnt. A task is a loss over a micro-batch; step, loop and checkpoint serve any.

A row here and a config make a new kind of training; there is never a second trainer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from gptjax.config import ModelConfig
from gptjax.model.attention import document_numbers
from gptjax.model.gpt import GPT, logits
from gptjax.model.parallel import enter, gathered
from gptjax.places import WHOLE, Split
from gptjax.training.loss import cross_entropy, cross_entropy_rows, token_losses

Params = dict[str, Any]
Batch = dict[str, Array]
EVALUATION_CHUNK = 2048  # tokens; evaluation never needs all logits at once


class Task(NamedTuple):
    """The two losses of a kind of training, both weighted sums in nats."""

    loss: Callable[[Params, Batch, Array | None], Array]
    """(params, batch, dropout key or None) -> scalar, for gradients; a key turns dropout on."""
    row_losses: Callable[[Params, Batch], Array]
    """(params, batch) -> one sum a row [B], for evaluation."""


def language_modelling(
    cfg: ModelConfig,
    loss_chunk_tokens: int = 0,
    split: Split = WHOLE,
    eot_id: int | None = None,
) -> Task:
    """Predict every next token: `tokens` [B, T + 1] against themselves, shifted by one.

    The training loss holds the logits of `loss_chunk_tokens` tokens at once; 0 means all. `split`
    says what the parameters are parts of, inside a `shard_map`. With an `eot_id` attention stays
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
        return enter(x_BTD, split), head_VD

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

    return Task(loss, row_losses)


TASKS: dict[str, Callable[..., Task]] = {"lm": language_modelling}

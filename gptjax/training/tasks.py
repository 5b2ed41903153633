"""What is being learnt. A task is a loss over a micro-batch; step, loop and checkpoint serve any.

A row here and a config make a new kind of training; there is never a second trainer.
"""

from collections.abc import Callable
from typing import Any

from jax import Array

from gptjax.config import ModelConfig
from gptjax.model.gpt import GPT
from gptjax.training.loss import cross_entropy_rows

Params = dict[str, Any]
Batch = dict[str, Array]
# (params, batch, dropout key or None) -> weighted sum of each row's loss in nats, [B]
RowLoss = Callable[[Params, Batch, Array | None], Array]


def language_modelling(cfg: ModelConfig) -> RowLoss:
    """Predict every next token: `tokens` [B, T + 1] against themselves, shifted by one.

    With a key the model runs in training mode, with dropout; without one it evaluates.
    """
    model = GPT(cfg)

    def row_loss(params: Params, batch: Batch, key: Array | None) -> Array:
        inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        rngs = None if key is None else {"dropout": key}
        logits_BTV: Any = model.apply(
            {"params": params}, inputs_BT, train=key is not None, rngs=rngs
        )
        return cross_entropy_rows(logits_BTV, targets_BT, batch["weights"])

    return row_loss


TASKS: dict[str, Callable[[ModelConfig], RowLoss]] = {"lm": language_modelling}

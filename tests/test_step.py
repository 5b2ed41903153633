"""One update is the gradient of the mean loss over the whole batch, however it is cut.

The reference is plain `jax.grad` on one device, with Optax's own cross-entropy, without
micro-steps or a mesh. Gradients are compared raw, before clipping and Adam: a snapshot in front of
the optimizer keeps them.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.config import ModelConfig, OptimConfig
from gptjax.model.gpt import GPT
from gptjax.training.mesh import make_mesh, put_rows, replicated
from gptjax.training.optimizer import learning_rate_schedule, make_optimizer
from gptjax.training.state import TrainState, initial_state
from gptjax.training.step import make_eval_step, make_train_step
from gptjax.training.tasks import language_modelling
from gptjax.tree import named_leaves

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=8, n_vocab=50, dtype="float32")
OPTIM = OptimConfig(peak_lr=3e-3, final_lr=1e-3, warmup_steps=3)
ROWS, UPDATES = 32, 20
SCHEDULE = learning_rate_schedule(OPTIM, UPDATES)
OPTIMIZER = optax.chain(
    optax.snapshot("raw_gradients", lambda gradients: gradients), make_optimizer(OPTIM, UPDATES)
)
LAYOUTS = [
    (1, 1),
    (8, 4),
    pytest.param(8, 1, marks=pytest.mark.slow),
    pytest.param(2, 4, marks=pytest.mark.slow),
    pytest.param(1, 4, marks=pytest.mark.slow),
]  # (devices, micro-steps); each compiles for seconds
Batch = dict[str, np.ndarray]


def row_loss_of(model: ModelConfig) -> Callable:
    """The language modelling task, with a factor on each row's loss to spoil single rows."""
    task = language_modelling(model)
    return lambda params, batch, key: task(params, batch, key) * batch["factor"]


@cache
def compiled(n_devices: int, micro_steps: int, dropout: float = 0.0) -> Callable:
    model = dataclass_with_dropout(dropout)
    step = make_train_step(
        row_loss_of(model), OPTIMIZER, SCHEDULE, make_mesh(n_devices), micro_steps, dropout > 0
    )
    return step


def dataclass_with_dropout(rate: float) -> ModelConfig:
    ...

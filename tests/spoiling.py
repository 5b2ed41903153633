"""A loss that is not a number on one device alone, in a step that a marked row of the data names.

`spoil` is called in the process of a test, or in one that it starts.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from gptjax.data.loader import StepSource
from gptjax.model.places import TENSOR
from gptjax.training import tasks

MARK, ROW, STEP = 255, 5, 3  # a byte that no text has; steps count from 1


def spoil(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Spoil the row of one device, or of a group, of which then only the last is spoilt."""
    batch_of, losses_of = StepSource.__getitem__, tasks.language_modelling

    def batch(source: StepSource, step: int) -> dict[str, Any]:
        found = batch_of(source, step)
        row = ROW - source._process * len(found["tokens"])
        if step + 1 == STEP and 0 <= row < len(found["tokens"]):
            found = {**found, "tokens": found["tokens"].copy()}
            found["tokens"][row] = MARK
        return found

    def losses(*args: Any, **options: Any) -> Any:
        made = losses_of(*args, **options)
        split = args[2]

        def loss(params: Any, batch: Any, key: Array | None) -> Array:
            is_spoilt = (batch["tokens"] == MARK).all(1).any()
            if split.tensor == 1:
                return made.loss(params, batch, key) * jnp.where(is_spoilt, jnp.nan, 1.0)
            # a leaf of which each device of the group has a part
            is_spoilt &= lax.axis_index(TENSOR) == split.tensor - 1
            h, wide = params["h"], params["h"]["mlp"]["c_fc"]
            bias = wide["bias"] + jnp.where(is_spoilt, jnp.nan, 0.0)
            mlp = {**h["mlp"], "c_fc": {**wide, "bias": bias}}
            return made.loss({**params, "h": {**h, "mlp": mlp}}, batch, key)

        return made._replace(loss=loss)

    put(StepSource, "__getitem__", batch)
    put(tasks, "language_modelling", losses)

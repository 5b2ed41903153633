"""The state of a run: three fields of arrays. With the config there is nothing else.

Random keys are `fold_in(key(seed), step)` and batches a function of (config, step), so neither is
stored; accumulated gradients live inside one update only. Hence nothing here depends on the number
of devices or micro-steps.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Sharding

from gptjax.config import ModelConfig
from gptjax.model.gpt import init_params
from gptjax.tree import Tree, placed


class TrainState(NamedTuple):
    """Updates done, float32 parameters, state of the optimizer chain."""

    step: Array
    params: Tree
    opt_state: Tree


def abstract_state(
    cfg: ModelConfig, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """The state's shapes, types and placement, with nothing allocated."""
    draw = partial(_initial, cfg, optimizer)
    return placed(jax.eval_shape(draw, jax.random.key(0)), sharding)


def initial_state(
    cfg: ModelConfig, optimizer: optax.GradientTransformation, seed: int, sharding: Sharding
) -> TrainState:
    """Draw parameters and zero the optimizer, placed as `sharding` says."""
    draw = partial(_initial, cfg, optimizer)
    # the key is an argument, for XLA would compute what depends on nothing while it compiles
    return jax.jit(draw, out_shardings=sharding)(jax.random.key(seed))


def _initial(cfg: ModelConfig, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    params = init_params(cfg, key)
    return TrainState(jnp.int32(0), params, optimizer.init(params))

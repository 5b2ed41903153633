"""The state of a run: a few fields of arrays. With the config there is nothing else.

Random keys are `fold_in(key(seed), step)` and batches a function of (config, step), so neither is
stored; accumulated gradients live inside one step only. Hence nothing here depends on the number
of devices or micro-steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from gptjax.base.tree import Tree, abstract_tree
from gptjax.cluster.mesh import replicated, shardings
from gptjax.config import ModelConfig
from gptjax.model.freezing import EVERYTHING, Trained
from gptjax.model.gpt import init_params, parameter_shapes
from gptjax.model.lora import with_adapters
from gptjax.runs.naming import ADAPTERS, AVERAGED, PARAMS
from gptjax.training.optimizer import averaged_parameters


class TrainState(NamedTuple):
    """Steps done, float32 parameters, state of the optimizer chain.

    `losses` are the `LossStatistics` of a run that refuses spikes, else None.
    """

    step: Array
    params: Tree
    opt_state: Tree
    losses: Tree = None


def abstract_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trained: Trained = EVERYTHING,
) -> TrainState:
    """The state's shapes, types and placement, with nothing allocated."""
    params = parameter_shapes(cfg)
    own = jax.eval_shape(lambda params: trained.split(params)[0], params)
    opt_state = jax.eval_shape(optimizer.init, own)
    step = jax.eval_shape(lambda: jnp.int32(0))
    places: Any = replicated(mesh), shardings(params, params, mesh), shardings(opt_state, own, mesh)
    return abstract_tree(TrainState(step, params, opt_state), TrainState(*places))


def initial_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    trained: Trained = EVERYTHING,
) -> TrainState:
    """Draw parameters and zero the optimizer; each device makes only its own part."""
    return drawing(cfg, optimizer, mesh, trained)(jax.random.key(seed))


def drawing(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trained: Trained = EVERYTHING,
) -> Callable[[Array], TrainState]:
    """What draws an initial state from a key, compiled once."""

    def draw(key: Array) -> TrainState:
        params = init_params(cfg, key)
        return TrainState(jnp.int32(0), params, optimizer.init(trained.split(params)[0]))

    places = jax.tree.map(lambda x: x.sharding, abstract_state(cfg, optimizer, mesh, trained))
    # the key is an argument: with a constant key XLA would draw the parameters while it compiles
    return jax.jit(draw, out_shardings=places)


def items_of(state: TrainState, trained: Trained = EVERYTHING) -> dict[str, Tree]:
    """A state's trees under their names in a checkpoint; with adapters these alone, not their base.

    Parameters that are frozen otherwise are kept with the rest.
    """
    if trained.are_adapters:
        return {ADAPTERS: trained.parts(state.params)[0], "opt_state": state.opt_state}
    return {PARAMS: state.params, "opt_state": state.opt_state}


def saved_items(state: TrainState, trained: Trained = EVERYTHING) -> dict[str, Tree]:
    """The items of a checkpoint, with an extra copy of the parameters' average if there is one.

    A reader of the average then need neither read nor know the optimizer's state.
    """
    averaged = averaged_parameters(state.opt_state)
    if averaged is None:
        return items_of(state, trained)
    average = trained.updated(state.params, averaged)
    if trained.are_adapters:
        average, _ = trained.parts(average)
    return {**items_of(state, trained), AVERAGED: average}


def state_of(
    step: int, items: dict[str, Tree], like: TrainState, base: Tree | None = None
) -> TrainState:
    """The inverse of `items_of`; the step lies where the step of `like` does.

    Statistics of losses, if `like` has them, begin anew; they are no item. Adapters join the
    parameters of their `base`.
    """
    count = jnp.asarray(step, jnp.int32, device=like.step.sharding)
    params = items[PARAMS] if base is None else with_adapters(base, items[ADAPTERS])
    losses = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), like.losses)
    return TrainState(count, params, items["opt_state"], losses)

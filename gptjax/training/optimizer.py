"""The optimizer as one guarded chain: clip, rule, masked decay, schedule; behind MultiSteps.

`optax.MultiSteps` runs its inner transformation on every micro-step and throws the result away on
all but the last, collectives included. The sum of gradients over the network therefore sits behind
a gate (`on_last_micro_step`) and runs once per step. The chain itself follows, on whole arrays that
the compiler divides as they are stored: a rule that needs whole matrices, such as Muon's, never
sees part of one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gptjax.base.tree import Tree, leaf_names, named_leaves
from gptjax.config import OptimConfig
from gptjax.model.places import is_decayed
from gptjax.training.guard import clip, skip_unless_finite
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.update_rules import UPDATE_RULES


def decay_mask(params: Tree) -> Tree:
    """True for matrices, False for biases and norms, as the table of leaves says."""
    return jax.tree.map(is_decayed, leaf_names(params))


def decay_table(params: Tree) -> list[tuple[str, tuple[int, ...], bool]]:
    """Every leaf as (name, shape, whether it decays), for people to check."""
    return [(name, leaf.shape, is_decayed(name)) for name, leaf in named_leaves(params).items()]


class AverageState(NamedTuple):
    """Accepted steps, int32 scalar, and the average, float32 and shaped like the parameters."""

    count: Array
    ema: Tree


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keep a running average of the parameters after each step.

    The average of Polyak and Juditsky 1992, made exponential to forget the beginning: it starts as
    the initial parameters, and step t, from 0, decays it by `min(decay, (1 + t) / (10 + t))`. It
    must be the last link of a chain: it takes the updates as final, and passes them on.
    """

    def init(params: Tree) -> AverageState:
        # a copy, since the state and the parameters are donated together
        return AverageState(jnp.int32(0), jax.tree.map(_float32_copy, params))

    def update(updates: Tree, state: Any, params: Tree = None):
        kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        ema = jax.tree.map(
            lambda average, new: average + (1 - kept) * (new - average),
            state.ema,
            optax.apply_updates(params, updates),
        )
        return updates, AverageState(state.count + 1, ema)

    return optax.GradientTransformation(init, update)


def averaged_parameters(opt_state: optax.OptState) -> Tree | None:
    """The running average of the parameters in `opt_state`; None if none is kept."""
    return optax.tree.get(opt_state, "ema", default=None)


def make_optimizer(
    cfg: OptimConfig, max_steps: int, dynamic_loss_scale: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The chain of one step, for gradients that are already averaged over all devices.

    Clipping at the global norm, the rule `cfg.name`, decay decoupled from it (Loshchilov and Hutter
    2019) but scaled by the learning rate, the schedule, and last the average if there is one. A
    step with any gradient that is not finite is skipped: parameters, moments, average and schedule
    stay as they were. `dynamic_loss_scale` means that the loss was multiplied by the state's
    `loss_scale`: see `skip_unless_finite`.
    """
    links = [
        clip(cfg.clip_norm),
        UPDATE_RULES[cfg.name](cfg),
        optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(cfg, max_steps)),
    ]
    if cfg.ema_decay is not None:
        links.append(average_parameters(cfg.ema_decay))
    return skip_unless_finite(optax.chain(*links), dynamic_loss_scale)


def on_last_micro_step(
    total: Callable[[Tree], Tree],
) -> optax.GradientTransformationExtraArgs:
    """Add up over devices, by `total`, only if `emit` is true; else emit zeros.

    `emit` must be the same on all devices, or the collective inside deadlocks.
    """

    def update(updates: Tree, state: Any, params: Tree = None, *, emit: Array, **extra: Tree):
        del extra

        def earlier():  # like params, not updates: only params vary over the same axes as totals
            return optax.tree.zeros_like(params)

        return lax.cond(emit, lambda: total(updates), earlier), state

    def init(params: Tree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    # pyright does not know that extra arguments may be required
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def accumulate(total: Callable[[Tree], Tree], micro_steps: int) -> optax.MultiSteps:
    """Average gradients over `micro_steps`, then add them up over devices by `total`, once."""
    return optax.MultiSteps(on_last_micro_step(total), every_k_schedule=micro_steps)


def _float32_copy(x: Array) -> Array:
    return jnp.array(x, jnp.float32, copy=True)

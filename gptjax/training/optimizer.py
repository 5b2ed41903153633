"""The optimizer as one guarded chain: clip, rule, masked decay, schedule; before it MultiSteps.

`optax.MultiSteps` runs its inner transformation on every micro-step, collectives included, and
throws the result away on all but the last. Here it therefore only averages gradients, and neither
their sum over the network nor the chain is inside it: both run once per step. The chain has whole
arrays that the compiler divides as they are stored: a rule that needs whole matrices, such as
Muon's, never sees part of one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

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


def accumulation(micro_steps: int) -> optax.MultiSteps:
    """A running average of gradients, which after `micro_steps` updates is in `acc_grads`.

    It counts to one more, and so never emits: a scan would carry its emission, zeros but for the
    last, and write a second tree of gradients in every micro-step.
    """
    return optax.MultiSteps(optax.identity(), every_k_schedule=micro_steps + 1)


def _float32_copy(x: Array) -> Array:
    return jnp.array(x, jnp.float32, copy=True)

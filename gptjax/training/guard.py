"""One gradient norm per step: it decides whether the gradients are used, is logged, and clips them.

If gradients are not finite, or the step is refused, the step is skipped: only the counters change,
and with dynamic loss scaling the scale. The norm is computed outside the branch that runs the
optimizer, because XLA does not share work across the edge of a branch, and at the size of GPT-2
every pass over the gradients takes a tenth of a second on a CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from gptjax.base.tree import Tree

FIRST_LOSS_SCALE = 2.0**15
SMALLEST_LOSS_SCALE = 1.0
LARGEST_LOSS_SCALE = 2.0**24
GOOD_UPDATES_TO_DOUBLE = 2000


class ClipState(NamedTuple):
    """Global norm of the last accepted step's gradients before clipping, float32 scalar."""

    grad_norm: Array


def clip(max_norm: float | None) -> optax.GradientTransformationExtraArgs:
    """Shrink gradients whose global norm is above `max_norm` to it (Pascanu et al. 2013).

    The norm comes as the extra argument `grad_norm`, from `skip_unless_finite`, and is kept in the
    state. Gradients within the norm are unchanged, bit for bit; `None` never clips.
    """

    def init(params: Tree) -> ClipState:
        del params
        return ClipState(jnp.float32(0))

    def update(
        updates: Tree, state: Any, params: Tree = None, *, grad_norm: Array, **extra: Tree
    ) -> tuple[Tree, ClipState]:
        del state, params, extra
        if max_norm is not None:
            factor = jnp.where(grad_norm > max_norm, max_norm / grad_norm, 1.0)
            updates = optax.tree.scale(factor, updates)
        return updates, ClipState(grad_norm)

    # pyright does not know that extra arguments may be required
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


class GuardState(NamedTuple):
    """The guard's counters, as scalars, around the state of the transformation that it guards."""

    notfinite_count: Array
    """Steps skipped in a row because gradients were not finite, int32."""
    total_notfinite: Array
    """Steps skipped in the whole run, for any reason, int32."""
    loss_scale: Array
    """Factor of the next loss, float32; 1 unless scaling is dynamic."""
    good_updates: Array
    """Steps accepted since the scale last changed, int32; 0 unless scaling is dynamic."""
    inner_state: optax.OptState


def skip_unless_finite(
    inner: optax.GradientTransformation, dynamic_loss_scale: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` if the global norm of the gradients is finite; else emit zeros.

    The extra argument `refused`, a bool scalar, skips a step whose gradients are finite. A skipped
    step leaves the state of `inner` as it was, its schedule included. Gradients that are not finite
    are never let in, however many steps in a row are skipped. `inner` gets the norm as the extra
    argument `grad_norm`.

    With `dynamic_loss_scale` (Micikevicius et al. 2018) the loss was multiplied by `loss_scale` of
    the state, so that small gradients survive float16. The gradients and their norm are divided by
    it before `inner` sees them. The scale starts at 2^15. A step that is not finite halves it, to 1
    at least, and 2000 accepted steps in a row double it, to 2^24 at most. All are powers of two:
    scaling rounds nothing.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> GuardState:
        scale = FIRST_LOSS_SCALE if dynamic_loss_scale else 1.0
        # not one shared zero: buffers that are donated must be distinct
        return GuardState(
            *(jnp.int32(0), jnp.int32(0), jnp.float32(scale), jnp.int32(0)), inner.init(params)
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree = None,
        *,
        refused: Array | None = None,
        **extra: Tree,
    ) -> tuple[Tree, GuardState]:
        norm = optax.tree.norm(updates)
        if dynamic_loss_scale:
            norm = norm / state.loss_scale

        def accept() -> tuple[Tree, optax.OptState]:
            unscaled = updates
            if dynamic_loss_scale:
                unscaled = optax.tree.scale(1 / state.loss_scale, updates)
            return inner.update(unscaled, state.inner_state, params, grad_norm=norm, **extra)

        def skip() -> tuple[Tree, optax.OptState]:
            return optax.tree.zeros_like(updates), state.inner_state

        finite = jnp.isfinite(norm)
        accepted = finite if refused is None else finite & ~refused
        updates, inner_state = lax.cond(accepted, accept, skip)
        loss_scale, good_updates = state.loss_scale, state.good_updates
        if dynamic_loss_scale:
            loss_scale, good_updates = _next_loss_scale(finite, loss_scale, good_updates)
        count, total = state.notfinite_count, state.total_notfinite
        return updates, GuardState(
            notfinite_count=jnp.where(finite, 0, count + 1),
            total_notfinite=jnp.where(accepted, total, total + 1),
            loss_scale=loss_scale,
            good_updates=good_updates,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def with_loss_scale(state: Any, dynamic: bool) -> Any:
    """The state of a run that continues in another type, with loss scaling turned on or off."""
    is_scaled = float(state.loss_scale) != 1.0
    if is_scaled == dynamic:
        return state
    scale = jnp.float32(FIRST_LOSS_SCALE if dynamic else 1.0)
    placed = jax.device_put((scale, jnp.int32(0)), state.loss_scale.sharding)
    return state._replace(loss_scale=placed[0], good_updates=placed[1])


def _next_loss_scale(finite: Array, scale: Array, good_updates: Array) -> tuple[Array, Array]:
    good_updates = jnp.where(finite, good_updates + 1, 0)
    doubles = good_updates == GOOD_UPDATES_TO_DOUBLE
    grown = jnp.where(doubles, jnp.minimum(scale * 2, LARGEST_LOSS_SCALE), scale)
    shrunk = jnp.maximum(scale / 2, SMALLEST_LOSS_SCALE)
    return jnp.where(finite, grown, shrunk), jnp.where(doubles, 0, good_updates)

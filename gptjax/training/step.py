"""One optimizer update as one jitted call, and one evaluation batch as another.

The update is a `shard_map` that is manual over `data`: every device scans its micro-batches,
gathers gradients locally, and only the last micro-step's gate lets them cross the network. The
parameters are cast to *varying* over `data` before differentiation; without that, autodiff itself
would sum the gradients of replicated parameters in every micro-step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gptjax.training.mesh import AXIS, replicated
from gptjax.training.optimizer import accumulate
from gptjax.training.state import TrainState
from gptjax.training.tasks import Batch, Params, RowLoss

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def make_train_step(
    row_loss: RowLoss,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    micro_steps: int,
    dropout: bool,
) -> TrainStep:
    """Compile-ready `step(state, batch, key) -> (state, metrics)`; `state` is donated.

    The batch has leading axes [A, B]; `key` is the run's base key. Metrics are replicated float32
    scalars: `loss` (nats per weighted token over the whole update), `grad_norm` before clipping,
    `learning_rate` and `tokens` (weighted) of this update, `skipped` (updates skipped so far in a
    row because a gradient was not finite).
    """
    steps = accumulate(optimizer, micro_steps, AXIS)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), lax.axis_index(AXIS))
        tokens = lax.psum(batch["weights"].sum(), AXIS)
        # MultiSteps averages over micro-steps and the gate over devices: with this factor the
        # mean of the scaled sums is exactly the sum of all losses over the count of all tokens
        scale = micro_steps * lax.axis_size(AXIS) / jnp.where(tokens > 0, tokens, 1.0)
        params = lax.pcast(state.params, AXIS, to="varying")

        def scaled_loss(params: Params, batch: Batch, key: Array) -> Array:
            return row_loss(params, batch, key if dropout else None).sum() * scale

        def micro_step(carry: tuple[Any, optax.MultiStepsState], item: tuple[Array, Batch]):
            _, accumulator = carry
            index, micro_batch = item
            loss, grads = jax.value_and_grad(scaled_loss)(
                params, micro_batch, jax.random.fold_in(key, index)
            )
            is_last = accumulator.mini_step == micro_steps - 1
            return steps.update(grads, accumulator, state.params, emit=is_last), loss

        zeros = optax.tree.zeros_like(state.params)
        accumulator = optax.MultiStepsState(
            mini_step=jnp.int32(0),
            gradient_step=state.step,
            inner_opt_state=state.opt_state,
            acc_grads=lax.pcast(zeros, AXIS, to="varying"),
        )
        (updates, accumulator), losses_A = lax.scan(
            micro_step, (zeros, accumulator), (jnp.arange(micro_steps), batch)
        )
        opt_state = accumulator.inner_opt_state
        metrics = {
            "loss": lax.pmean(losses_A.mean(), AXIS),
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "learning_rate": schedule(_schedule_count(state.opt_state)),
            "tokens": tokens,
            "skipped": optax.tree.get(opt_state, "notfinite_count"),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(jnp.asarray(accumulator.gradient_step), params, opt_state), metrics

    sharded = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(P(), P(None, AXIS), P()),
        out_specs=(P(), P()),
        axis_names={AXIS},
    )
    # outputs are pinned to their inputs' placement, so that no step can drift into a recompilation
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


def make_eval_step(row_loss: RowLoss, mesh: Mesh) -> Callable[[Params, Batch], Metrics]:
    """Compile-ready `step(params, batch) -> sums` over the rows of all devices.

    The batch has a leading axis [B]. Sums are replicated float32 scalars: `loss` (nats) and
    `tokens`, both weighted; `rows` that weigh anything, and over those the sums of each row's mean
    loss, `mean`, and of its square, `square`, for a standard error.
    """

    def evaluate(params: Params, batch: Batch) -> Metrics:
        loss_B, tokens_B = row_loss(params, batch, None), batch["weights"].sum(1)
        mean_B = loss_B / jnp.where(tokens_B > 0, tokens_B, 1.0)
        sums = {
            "loss": loss_B.sum(),
            "tokens": tokens_B.sum(),
            "rows": (tokens_B > 0).sum(dtype=jnp.float32),
            "mean": mean_B.sum(),
            "square": jnp.square(mean_B).sum(),
        }
        return lax.psum(sums, AXIS)

    sharded = jax.shard_map(
        evaluate, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), axis_names={AXIS}
    )
    return jax.jit(sharded, out_shardings=replicated(mesh))


def _schedule_count(opt_state: Any) -> Array:
    """Accepted updates so far, which is what the schedule goes by."""
    return optax.tree.get(opt_state, "count", filtering=_is_schedule_state)


def _is_schedule_state(path: Any, _: Any) -> bool:
    return any(getattr(part, "tuple_name", "") == "ScaleByScheduleState" for part in path)

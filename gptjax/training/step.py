"""One optimizer update as one jitted call, or several as one; an evaluation batch as another.

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
from gptjax.training.tasks import Batch, Params, Task

Metrics = dict[str, Array]
METRICS = ("loss", "grad_norm", "learning_rate", "tokens", "skipped")
MATMUL_PRECISION = {"highest": "highest", "tf32": "tensorfloat32"}  # of float32 products, on GPUs
Update = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def make_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    micro_steps: int,
    dropout: bool,
    float32_matmul: str = "highest",
) -> Update:
    """`update(state, batch, key) -> (state, metrics)` as each device does it, in a `shard_map`.

    The batch has leading axes [A, B]; `key` is the run's base key. Metrics are replicated float32
    scalars: `loss` (nats per weighted token over the whole update), `grad_norm` before clipping,
    `learning_rate` and `tokens` (weighted) of this update, `skipped` (updates skipped so far in a
    row because a gradient was not finite).
    """

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), lax.axis_index(AXIS))
        tokens = lax.psum(batch["weights"].sum(), AXIS)
        loss_scale = optax.tree.get(state.opt_state, "loss_scale")
        # gradients are averaged over micro-steps and devices: with these weights the mean of the
        # sums is exactly the sum of all losses over the count of all tokens
        share = micro_steps * lax.axis_size(AXIS) / jnp.where(tokens > 0, tokens, 1.0)
        batch = {**batch, "weights": batch["weights"] * (share * loss_scale)}
        params = lax.pcast(state.params, AXIS, to="varying")

        def loss_and_gradients(index: Array | int, micro_batch: Batch) -> tuple[Array, Params]:
            micro_key = jax.random.fold_in(key, index) if dropout else None
            return jax.value_and_grad(task.loss)(params, micro_batch, micro_key)

        with jax.default_matmul_precision(MATMUL_PRECISION[float32_matmul]):
            updates, opt_state, losses_A = _accumulated(
                loss_and_gradients, optimizer, state, batch, micro_steps
            )
        metrics = {
            "loss": lax.pmean(losses_A.mean(), AXIS) / loss_scale,
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "learning_rate": schedule(_schedule_count(state.opt_state)),
            "tokens": tokens,
            "skipped": optax.tree.get(opt_state, "notfinite_count"),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return update


def make_train_step(update: Update, mesh: Mesh) -> jax.stages.Wrapped:
    """Compile-ready `step(state, batch, key) -> (state, metrics)`; `state` is donated."""
    return _compile_ready(update, mesh, (P(), P(None, AXIS), P()))


def make_train_steps(update: Update, mesh: Mesh) -> jax.stages.Wrapped:
    """Compile-ready `steps(state, batches, key, count) -> (state, metrics)`; `state` is donated.

    Does the first `count` of K updates in one call, which saves launching each of them: their
    batches have leading axes [K, A, B], and metrics are [K], zero for what was not done. How often
    the loop goes round is not compiled in, so the bits of an update depend neither on `count` nor
    on its place in a call.
    """

    def updates(
        state: TrainState, batches: Batch, key: Array, count: Array
    ) -> tuple[TrainState, Metrics]:
        def one_more(index: Array, done: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = done
            batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, False), batches)
            state, values = update(state, batch, key)
            return state, {name: metrics[name].at[index].set(values[name]) for name in metrics}

        nothing = jnp.zeros(len(batches["weights"]), jnp.float32)
        return lax.fori_loop(0, count, one_more, (state, dict.fromkeys(METRICS, nothing)))

    return _compile_ready(updates, mesh, (P(), P(None, None, AXIS), P(), P()))


def _compile_ready(function: Callable[..., Any], mesh: Mesh, in_specs: Any) -> jax.stages.Wrapped:
    sharded = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=(P(), P()), axis_names={AXIS}
    )
    # outputs are pinned to their inputs' placement, so that no step can drift into a recompilation
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


def _accumulated(
    loss_and_gradients: Callable[[Array | int, Batch], tuple[Array, Params]],
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    micro_steps: int,
) -> tuple[Any, Any, Array]:
    """Parameter updates, new optimizer state and the loss of every micro-step [A].

    A single micro-step has nothing to accumulate, and MultiSteps would still pass over every
    parameter several times.
    """
    if micro_steps == 1:
        loss, grads = loss_and_gradients(0, jax.tree.map(lambda x: x[0], batch))
        mean = lax.pmean(grads, AXIS)
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        return updates, opt_state, loss[None]

    steps = accumulate(optimizer, micro_steps, AXIS)
    zeros = optax.tree.zeros_like(state.params)
    accumulator = optax.MultiStepsState(
        mini_step=jnp.int32(0),
        gradient_step=state.step,
        inner_opt_state=state.opt_state,
        acc_grads=lax.pcast(zeros, AXIS, to="varying"),
    )

    def micro_step(carry: tuple[Any, optax.MultiStepsState], item: tuple[Array, Batch]):
        _, accumulator = carry
        loss, grads = loss_and_gradients(*item)
        is_last = accumulator.mini_step == micro_steps - 1
        return steps.update(grads, accumulator, state.params, emit=is_last), loss

    (updates, accumulator), losses_A = lax.scan(
        micro_step, (zeros, accumulator), (jnp.arange(micro_steps), batch)
    )
    return updates, accumulator.inner_opt_state, losses_A


def make_eval_step(
    task: Task, mesh: Mesh, float32_matmul: str = "highest"
) -> Callable[[Params, Batch], Metrics]:
    """Compile-ready `step(params, batch) -> sums` over the rows of all devices.

    The batch has a leading axis [B]. Sums are replicated float32 scalars: `loss` (nats) and
    `tokens`, both weighted; `rows` that weigh anything, and over those the sums of each row's mean
    loss, `mean`, and of its square, `square`, for a standard error.
    """

    def evaluate(params: Params, batch: Batch) -> Metrics:
        with jax.default_matmul_precision(MATMUL_PRECISION[float32_matmul]):
            loss_B = task.row_losses(params, batch)
        tokens_B = batch["weights"].sum(1)
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

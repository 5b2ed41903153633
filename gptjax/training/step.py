"""One optimizer step, or several, as one jitted call; an evaluation batch as another.

Gradients are taken in a `shard_map` that is manual over the whole mesh: every device scans its
micro-batches and averages gradients locally; they cross the network between groups of devices once,
after the last micro-step. Before differentiation the parameters are cast to *varying* over
the axes that divide rows; otherwise autodiff would sum the gradients of replicated parameters in
every micro-step. The optimizer follows, on whole arrays that the compiler divides as they are
stored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gptjax.base.tree import Tree
from gptjax.cluster.mesh import DATA, replicated, row_axes, rows_spec
from gptjax.data.examples import IS_REAL
from gptjax.model.freezing import EVERYTHING, Trained
from gptjax.model.places import FSDP
from gptjax.training.objectives import Batch, Losses, Params
from gptjax.training.optimizer import accumulation
from gptjax.training.spikes import is_spike, with_loss
from gptjax.training.state import TrainState

Metrics = dict[str, Array]
METRICS = ("loss", "grad_norm", "learning_rate", "tokens", "not_finite", "refused")
StepFunction = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def make_step(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    specs: Tree,
    dropout: bool,
    precision: str = "highest",
    wire_dtype: str = "float32",
    trained: Trained = EVERYTHING,
    skip_zscore: float | None = None,
) -> StepFunction:
    """`step(state, batch, key) -> (state, metrics)`, for use within a jit.

    `specs` divides each parameter over the mesh; one spec may stand for all, if all are `trained`.
    The batch has leading axes [A, B], for A micro-steps; `key` is the run's base key. Products have
    `precision`, the `matmul_precision` of the model. Gradients cross between groups of devices in
    `wire_dtype`.
    Metrics are float32 scalars: `loss` (nats per weighted token over the whole step), `grad_norm`
    before clipping, `learning_rate` and `tokens` (weighted) of this step, `not_finite` (steps
    skipped so far in a row because a gradient was not finite), `refused` (1 if this step was
    skipped because its loss was `skip_zscore` standard deviations above the mean).
    """
    rows = row_axes(mesh)
    own_specs, other_specs = (specs, {}) if trained.everything else trained.parts(specs)
    total = _total_over(rows, own_specs, wire_dtype)

    def gradients(
        params: Params, frozen: Params, batch: Batch, key: Array, step: Array, loss_scale: Array
    ):
        key = jax.random.fold_in(jax.random.fold_in(key, step), lax.axis_index(rows))
        micro_steps = _length(batch)
        weights = losses.weights(batch)
        tokens = lax.psum(weights.sum(), rows)
        # gradients are averaged over micro-steps and added up over devices: with these weights
        # the result is exactly the sum of all losses over the count of all tokens
        share = micro_steps / jnp.where(tokens > 0, tokens, 1.0)
        share = lax.pcast(share * loss_scale, rows, to="varying")  # and so are weights, if all ones
        batch = {**batch, "weights": weights * share}
        varying, constant = _varying(params, own_specs, rows), _varying(frozen, other_specs, rows)

        def loss_of(params: Params, micro_batch: Batch, micro_key: Array | None) -> Array:
            return losses.loss(trained.for_loss(params, constant), micro_batch, micro_key)

        def loss_and_gradients(index: Array | int, micro_batch: Batch) -> tuple[Array, Params]:
            micro_key = jax.random.fold_in(key, index) if dropout else None
            return jax.value_and_grad(loss_of)(varying, micro_batch, micro_key)

        with jax.default_matmul_precision(precision):
            grads, losses_A = _accumulated(loss_and_gradients, total, varying, batch, micro_steps)
        return grads, lax.psum(losses_A.mean(), rows) / loss_scale, tokens

    sharded = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(own_specs, other_specs, rows_spec(mesh, axis=1), P(), P(), P()),
        out_specs=(own_specs, P(), P()),
    )

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        loss_scale = optax.tree.get(state.opt_state, "loss_scale")
        params, frozen = trained.split(state.params)
        grads, loss, tokens = sharded(params, frozen, batch, key, state.step, loss_scale)
        losses, refused, extra = state.losses, jnp.bool_(False), {}
        if skip_zscore is not None:
            refused = is_spike(losses, loss, skip_zscore)
            extra = {"refused": refused}
        updates, opt_state = optimizer.update(grads, state.opt_state, params, **extra)
        # skipped steps leave the schedule alone
        skipped = optax.tree.get(state.opt_state, "total_notfinite")
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "learning_rate": schedule(state.step - skipped),
            "tokens": tokens,
            "not_finite": optax.tree.get(opt_state, "notfinite_count"),
            "refused": refused.astype(jnp.float32),
        }
        if skip_zscore is not None:
            is_finite = metrics["not_finite"] == 0
            losses = with_loss(losses, loss, refused & is_finite, is_finite & ~refused)
        params = trained.updated(state.params, optax.apply_updates(params, updates))
        return TrainState(state.step + 1, params, opt_state, losses), metrics

    return step


def make_train_step(step: StepFunction, places: Tree) -> jax.stages.Wrapped:
    """Compile-ready `step(state, batch, key) -> (state, metrics)`; `state` is donated.

    `places` has the sharding of every leaf of the state, or one for all.
    """
    return _compile_ready(step, places)


def make_train_steps(step: StepFunction, places: Tree) -> jax.stages.Wrapped:
    """Compile-ready `steps(state, batches, key, count) -> (state, metrics)`; `state` is donated.

    One call does the first `count` of K steps, which saves dispatching each of them. Batches have
    leading axes [K, A, B], and metrics are [K], zero for steps not done. The number of steps is not
    compiled in, so the bits of a step depend neither on `count` nor on its place in a call.
    """

    def steps(
        state: TrainState, batches: Batch, key: Array, count: Array
    ) -> tuple[TrainState, Metrics]:
        def one_more(index: Array, done: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = done
            batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, False), batches)
            state, values = step(state, batch, key)
            return state, {name: metrics[name].at[index].set(values[name]) for name in metrics}

        nothing = jnp.zeros(_length(batches), jnp.float32)
        return lax.fori_loop(0, count, one_more, (state, dict.fromkeys(METRICS, nothing)))

    return _compile_ready(steps, places)


def _compile_ready(function: Callable[..., Any], places: Tree) -> jax.stages.Wrapped:
    # outputs stay where their inputs lie, so that no step can drift into a recompilation
    metrics = replicated(jax.tree.leaves(places)[0].mesh)
    return jax.jit(function, donate_argnums=0, out_shardings=(places, metrics))


def _varying(tree: Tree, specs: Tree, axes: tuple[str, ...]) -> Tree:
    """The same values, varying over `axes`, over which divided leaves vary already."""

    def cast(spec: P, x: Array) -> Array:
        return lax.pcast(x, tuple(a for a in axes if a not in spec), to="varying")

    return jax.tree.map(cast, _of_each(specs, tree), tree, is_leaf=_is_spec)


def _of_each(specs: Tree, tree: Tree) -> Tree:
    """A spec for every leaf; one spec may stand for all leaves below it."""
    return jax.tree.broadcast(specs, tree, is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _total_over(rows: tuple[str, ...], specs: Tree, wire_dtype: str) -> Callable[[Tree], Tree]:
    """Add up gradients over all devices that have their own rows.

    The gradient of a leaf divided over `fsdp` was added up along that axis when it was scattered.
    """

    def total(grads: Tree) -> Tree:
        def add(spec: P, grad: Array) -> Array:
            axes = (DATA,) if FSDP in spec else rows
            return lax.psum(grad.astype(wire_dtype), axes).astype(grad.dtype)

        return jax.tree.map(add, _of_each(specs, grads), grads, is_leaf=_is_spec)

    return total


def _accumulated(
    loss_and_gradients: Callable[[Array | int, Batch], tuple[Array, Params]],
    total: Callable[[Tree], Tree],
    varying: Params,
    batch: Batch,
    micro_steps: int,
) -> tuple[Params, Array]:
    """The gradients of a step, added up over devices, and the loss of every micro-step [A].

    A single micro-step has nothing to accumulate, and MultiSteps would still pass over every
    parameter several times.
    """
    if micro_steps == 1:
        loss, grads = loss_and_gradients(0, jax.tree.map(lambda x: x[0], batch))
        return total(grads), loss[None]

    average = accumulation(micro_steps)

    def micro_step(
        accumulator: optax.MultiStepsState, item: tuple[Array, Batch]
    ) -> tuple[optax.MultiStepsState, Array]:
        loss, grads = loss_and_gradients(*item)
        return average.update(grads, accumulator)[1], loss

    items = jnp.arange(micro_steps), batch
    accumulator, losses_A = lax.scan(micro_step, average.init(varying), items)
    return total(accumulator.acc_grads), losses_A


def make_eval_step(
    losses: Losses, mesh: Mesh, specs: Tree, precision: str = "highest"
) -> jax.stages.Wrapped:
    """Compile-ready `step(params, batch) -> sums` over the rows of all devices.

    The batch has a leading axis [B]; rows whose IS_REAL is 0 have no weight. Sums are replicated
    float32 scalars: `loss` (nats) and `tokens`, both weighted; the number of `rows` with weight,
    and over these rows the sums of the mean loss, `mean`, and its square, `square`, for a standard
    error. Beside them come the sums of whatever else the task measures of each row.
    """

    def evaluate(params: Params, batch: Batch) -> Metrics:
        batch, is_real_B = dict(batch), batch[IS_REAL]
        del batch[IS_REAL]
        weights = losses.weights(batch)
        weights = weights * is_real_B.reshape(-1, *[1] * (weights.ndim - 1))
        with jax.default_matmul_precision(precision):
            measured = losses.row_losses(params, {**batch, "weights": weights})
        loss_B, others = measured.pop("loss"), measured
        tokens_B = weights.reshape(len(weights), -1).sum(1)
        mean_B = loss_B / jnp.where(tokens_B > 0, tokens_B, 1.0)
        sums = {
            "loss": loss_B.sum(),
            "tokens": tokens_B.sum(),
            "rows": (tokens_B > 0).sum(dtype=jnp.float32),
            "mean": mean_B.sum(),
            "square": jnp.square(mean_B).sum(),
            **{name: jnp.tensordot(is_real_B, x, (0, 0)) for name, x in others.items()},
        }
        return lax.psum(sums, row_axes(mesh))

    sharded = jax.shard_map(
        evaluate, mesh=mesh, in_specs=(specs, rows_spec(mesh, axis=0)), out_specs=P()
    )
    return jax.jit(sharded, out_shardings=replicated(mesh))


def _length(batch: Batch) -> int:
    """Items along the first axis, which all fields share."""
    return len(jax.tree.leaves(batch)[0])

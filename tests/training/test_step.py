"""One step is the gradient of the mean loss over the whole batch, however it is cut.

The reference is plain `jax.grad` on one device with Optax's own cross-entropy: no mesh, no
micro-steps. Gradients are compared raw, before clipping and Adam, through a snapshot in front of
the optimizer.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import EXHAUSTIVE
from jax import lax

from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import make_mesh, put_rows, replicated
from gptjax.config import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.data.examples import IS_REAL
from gptjax.model.gpt import GPT
from gptjax.training.optimizer import make_optimizer
from gptjax.training.program import Program, assemble
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.state import TrainState, abstract_state, initial_state

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=8, n_vocab=50, dtype="float32")
OPTIM = OptimConfig(peak_lr=3e-3, final_lr=1e-3, warmup_steps=3)
ROWS, STEPS = 32, 20
SCHEDULE = learning_rate_schedule(OPTIM, STEPS)
CHAIN = make_optimizer(OPTIM, STEPS)
OPTIMIZER = optax.chain(optax.snapshot("raw_gradients", lambda gradients: gradients), CHAIN)
LAYOUTS = [
    (8, 4),
    pytest.param((1, 1), marks=EXHAUSTIVE),
    pytest.param((8, 1), marks=pytest.mark.slow),
    pytest.param((2, 4), marks=EXHAUSTIVE),
    pytest.param((1, 4), marks=pytest.mark.slow),
]  # (devices, micro-steps); each compiles for seconds
Layout = tuple[int, int]
Batch = dict[str, np.ndarray]


def with_dropout(rate: float) -> dict[str, float]:
    return dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), rate)


def program(n_devices: int, **fields: Any) -> Program:
    """The program of the small model on so many devices; `fields` are of its model or training."""
    train = TrainConfig(max_steps=STEPS, loss_chunk_tokens=5)
    model = {k: v for k, v in fields.items() if hasattr(MODEL, k)}
    train = dataclasses.replace(train, **{k: v for k, v in fields.items() if k not in model})
    config = Config(model=dataclasses.replace(MODEL, **model), optim=OPTIM, train=train)
    return dataclasses.replace(assemble(config, make_mesh(n_devices)), optimizer=OPTIMIZER)


@cache
def train_step(layout: Layout, rate: float = 0.0) -> Callable:
    """The step of one layout; `factor` multiplies each row's loss, so that one can be spoilt."""
    made = program(layout[0], **with_dropout(rate))

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        spoilt = batch["weights"] * batch["factor"][:, None]
        return made.losses.loss(params, {**batch, "weights": spoilt}, key)

    return dataclasses.replace(made, losses=made.losses._replace(loss=loss)).train_step


@cache
def host_state() -> TrainState:
    """Parameters far from their initial values, where no gradient is small."""
    state = jax.device_get(initial_state(MODEL, OPTIMIZER, 0, make_mesh(1)))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda p: p + np.float32(0.2 * draw(p.shape)), state.params)
    return state._replace(params=params)


def fresh_state(layout: Layout, step: int = 0) -> TrainState:
    state = jax.tree.map(np.array, host_state())._replace(step=np.array(step, np.int32))
    return jax.device_put(state, replicated(make_mesh(layout[0])))


def random_batch(seed: int, uneven: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, MODEL.n_vocab, (ROWS, MODEL.n_ctx + 1), dtype=np.int32)
    weights = np.ones((ROWS, MODEL.n_ctx), np.float32)
    if uneven:  # from nothing in a row to everything, and some targets that count for a fraction
        share = np.linspace(0, 1, ROWS)[:, None] ** 4
        weights = np.float32(
            (rng.random(weights.shape) < share) * rng.choice([0.25, 1.0], (ROWS, 1))
        )
        weights[-1] = 1.0
    return {"tokens": tokens, "weights": weights, "factor": np.ones(ROWS, np.float32)}


def one_step(
    layout: Layout, state: TrainState, batch: Batch, rate: float = 0.0, seed: int = 0
) -> tuple[TrainState, dict]:
    mesh = make_mesh(layout[0])
    key = jax.device_put(jax.random.key(seed), replicated(mesh))
    cut = jax.tree.map(lambda x: x.reshape(layout[1], -1, *x.shape[1:]), batch)
    return train_step(layout, rate)(state, put_rows(mesh, cut, axis=1), key)


@jax.jit
def reference(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
    """Mean loss over all weighted targets and its gradient, in one piece."""

    def mean_loss(params: Any) -> jax.Array:
        logits = GPT(MODEL).apply({"params": params}, batch["tokens"][:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[..., : MODEL.n_vocab], batch["tokens"][:, 1:]
        )
        return (losses * batch["weights"]).sum() / batch["weights"].sum()

    return jax.value_and_grad(mean_loss)(params)


def assert_same(got: Any, expected: Any, relative: float) -> None:
    """Every leaf within `relative` of the norm of the expected one."""
    expected = named_leaves(expected)
    for name, leaf in named_leaves(got).items():
        error = np.linalg.norm(np.float64(leaf) - np.float64(expected[name]))
        assert error <= relative * np.linalg.norm(expected[name]), name


def assert_bitwise_same(got: Any, expected: Any) -> None:
    expected = named_leaves(expected)
    for name, leaf in named_leaves(got).items():
        np.testing.assert_array_equal(leaf, expected[name], strict=True, err_msg=name)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_raw_gradients_are_those_of_the_mean_loss_over_all_tokens(layout, uneven):
    batch = random_batch(1, uneven)
    loss, gradients = reference(host_state().params, batch)
    state, metrics = one_step(layout, fresh_state(layout), batch)
    assert_same(optax.tree.get(state.opt_state, "raw_gradients"), gradients, relative=1e-6)
    norm = np.sqrt(sum(np.square(np.float64(g)).sum() for g in jax.tree.leaves(gradients)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["tokens"]) == pytest.approx(batch["weights"].sum(), rel=1e-6)


@cache
def reference_losses() -> list[float]:
    """Twenty steps without a mesh or micro-steps."""

    plain = jax.jit(CHAIN.update)
    params, losses = host_state().params, []
    opt_state = CHAIN.init(params)
    for i in range(STEPS):
        loss, gradients = reference(params, random_batch(i % 3))
        updates, opt_state = plain(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_losses_do_not_depend_on_devices_or_micro_steps(layout):
    state, losses, rates = fresh_state(layout), [], []
    for i in range(STEPS):
        state, metrics = one_step(layout, state, random_batch(i % 3))
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(losses, reference_losses(), rtol=1e-5)
    np.testing.assert_allclose(rates, [float(SCHEDULE(i)) for i in range(STEPS)], rtol=1e-6)
    assert losses[-1] < losses[0] - 0.3
    assert int(state.step) == STEPS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_weighs_nothing_gives_zero_and_stays_finite(layout):
    batch = random_batch(1)
    batch["weights"][:] = 0
    state, metrics = one_step(layout, fresh_state(layout), batch)
    assert {k: float(metrics[k]) for k in ("loss", "tokens", "grad_norm", "not_finite")} == {
        "loss": 0.0, "tokens": 0.0, "grad_norm": 0.0, "not_finite": 0.0
    }  # fmt: skip
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def test_a_step_that_weighs_less_than_one_token_has_the_mean_loss_too():
    batch, layout = random_batch(1), (8, 4)
    batch["weights"][:] = 0
    batch["weights"][5, 2] = 0.5
    loss, gradients = reference(host_state().params, batch)
    state, metrics = one_step(layout, fresh_state(layout), batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert_same(optax.tree.get(state.opt_state, "raw_gradients"), gradients, relative=1e-6)


@pytest.mark.parametrize("bad_row", [3, 20, 31])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_on_one_device_skips_the_step_on_all_and_the_next_is_accepted(layout, bad_row):
    good, bad = random_batch(1), random_batch(2)
    bad["factor"][bad_row] = np.nan
    before = host_state()
    state, metrics = one_step(layout, fresh_state(layout), bad)
    assert float(metrics["not_finite"]) == 1
    assert int(state.step) == 1
    for name, leaf in named_leaves(state.params).items():
        assert len(leaf.addressable_shards) == layout[0]
        for replica in leaf.addressable_shards:
            np.testing.assert_array_equal(replica.data, named_leaves(before.params)[name])
    assert_bitwise_same(optax.tree.get(state.opt_state, "mu"), optax.tree.get(before, "mu"))

    state, metrics = one_step(layout, state, good)
    unharmed, undisturbed = one_step(layout, fresh_state(layout, step=1), good)
    assert float(metrics["not_finite"]) == 0
    assert float(metrics["learning_rate"]) == float(SCHEDULE(0))
    assert float(metrics["loss"]) == float(undisturbed["loss"])
    assert_bitwise_same(state.params, unharmed.params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_is_donated_and_stays_where_it_was(layout):
    state = fresh_state(layout)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    for i in range(3):
        old, (state, _) = state, one_step(layout, state, random_batch(i))
        # the snapshot of the gradients is overwritten unread, which leaves the old one alone
        read = (old.step, old.params, old.opt_state[1:])
        assert all(x.is_deleted() for x in jax.tree.leaves(read))
        assert jax.tree.map(lambda x: x.sharding, state) == shardings


def abstract(layout: Layout, optimizer: Any) -> tuple[Any, Any, Any]:
    """Shapes and placement of what a step of this layout takes."""
    mesh, (_, micro_steps) = make_mesh(layout[0]), layout
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    cut = jax.tree.map(lambda x: x.reshape(micro_steps, -1, *x.shape[1:]), random_batch(0))
    state = abstract_state(MODEL, optimizer, mesh)
    return state, put_rows(mesh, cut, axis=1), key


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(8, 4), (8, 1), (1, 4)])
def test_results_are_written_where_the_state_was(layout):
    """Donation is more than a promise: the compiler has no second state in its account."""
    step = dataclasses.replace(program(layout[0]), optimizer=CHAIN).train_step
    arguments = abstract(layout, CHAIN)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0]))
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size - 64  # scalars that nothing reads are no arguments
    assert size > 100_000
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1000  # metrics


@pytest.mark.slow
def test_one_micro_step_gives_the_step_of_several():
    """But where the gradient is rounding error alone, as a key's bias is: Adam scales that up."""
    batch, after_each = random_batch(1, uneven=True), []
    for layout in ((8, 1), (8, 4)):
        state, metrics = one_step(layout, fresh_state(layout), batch)
        after_each.append((state, metrics))
    (one, one_metrics), (four, four_metrics) = after_each
    assert_same(one.opt_state, four.opt_state, relative=1e-6)
    gradients = named_leaves(optax.tree.get(one.opt_state, "raw_gradients"))
    expected = named_leaves(four.params)
    for name, leaf in named_leaves(one.params).items():
        is_real = np.abs(gradients[name]) > 1e-4
        assert is_real.mean() > 0.2, name
        np.testing.assert_allclose(
            np.asarray(leaf)[is_real], np.asarray(expected[name])[is_real], rtol=2e-6, atol=1e-7
        )
    assert_same(one_metrics, four_metrics, relative=1e-6)


def products_in(jaxpr: Any) -> list[Any]:
    """The precision of every matrix product of a program, in inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive is lax.dot_general_p:
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found += products_in(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize("micro_steps", [1, 4])
@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float32", lax.Precision.HIGHEST), ("bfloat16", lax.Precision.DEFAULT)],
)
def test_every_product_has_the_precision_that_its_type_needs(dtype, precision, chunk, micro_steps):
    layout = (8, micro_steps)
    made = program(8, dtype=dtype, loss_chunk_tokens=chunk)
    state, batch, key = abstract(layout, OPTIMIZER)
    forward = products_in(jax.make_jaxpr(lambda p, b: made.losses.loss(p, b, None))(
        state.params, jax.tree.map(lambda x: x[0], batch)
    ).jaxpr)  # fmt: skip
    found = products_in(jax.make_jaxpr(made.train_step)(state, batch, key).jaxpr)
    products = 7  # four projections, two of attention, logits; narrow ones in two forms each
    assert len(forward) >= products
    assert len(found) >= 3 * products - 1  # each has two more backwards; logits may be shared
    assert set(found) == {(precision, precision)}

    rows = put_rows(made.mesh, {**random_batch(0), IS_REAL: np.ones(ROWS, np.float32)}, axis=0)
    assert set(products_in(jax.make_jaxpr(made.eval_step)(state.params, rows).jaxpr)) == {
        (precision, precision)
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_compiled_after_the_first_step(layout, caplog):
    state, _ = one_step(layout, fresh_state(layout), random_batch(0))
    with jax.log_compiles():
        for i in range(3):
            state, _ = one_step(layout, state, random_batch(i))
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(1.0)  # what is looked for does appear where something compiles
        assert "Compiling" in caplog.text


@cache
def several_steps() -> Callable:
    """Up to four steps a call, on eight devices with one micro-step each."""
    return program(8, **with_dropout(0.2), updates_per_call=4).train_step


def by_calls(counts: list[int]) -> tuple[TrainState, dict[str, np.ndarray]]:
    """State and metrics after calls of so many steps each, on the same batches."""
    mesh, state, found, done = make_mesh(8), fresh_state((8, 1)), [], 0
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    for count in counts:
        rows = [random_batch(done + i if i < count else 99) for i in range(4)]
        batch = jax.tree.map(lambda *x: np.stack(x)[:, None], *rows)
        del batch["factor"]
        batches = put_rows(mesh, batch, axis=2)
        state, metrics = several_steps()(state, batches, key, np.int32(count))
        assert all(not np.asarray(x)[count:].any() for x in metrics.values())
        found.append({name: np.asarray(x)[:count] for name, x in metrics.items()})
        done += count
    return state, jax.tree.map(lambda *x: np.concatenate(x), *found)


@pytest.mark.slow
def test_several_steps_in_a_call_are_those_of_single_calls():
    """Bit for bit however they are cut into calls; to rounding, the program of one step's."""
    state, metrics = by_calls([3, 3])
    for counts in ([1, 4, 1], [2, 2, 2]):
        other = by_calls(counts)
        assert_bitwise_same(other[0], state)
        assert_bitwise_same(other[1], metrics)
    alone, losses = fresh_state((8, 1)), []
    for i in range(6):
        alone, values = one_step((8, 1), alone, random_batch(i), rate=0.2)
        losses.append(float(values["loss"]))
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert len(set(losses)) == 6
    assert int(state.step) == 6


def row_losses(rows: Iterable[int], rate: float, step: int = 0, seed: int = 0) -> list[float]:
    """Loss of single rows among identical ones, each on its own device and micro-step."""
    layout, losses = (8, 4), []
    batch = random_batch(1)
    batch["tokens"][:] = batch["tokens"][0]
    for row in rows:
        batch["weights"] = np.zeros_like(batch["weights"])
        batch["weights"][row] = 1.0
        metrics = one_step(layout, fresh_state(layout, step), batch, rate, seed)[1]
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.slow
def test_every_device_micro_step_step_and_seed_drops_other_elements():
    everywhere = row_losses(range(ROWS), rate=0.5)
    corners = [0, 7, 24, 31]
    later, elsewhere = row_losses(corners, 0.5, step=1), row_losses(corners, 0.5, seed=1)
    assert len({*everywhere, *later, *elsewhere}) == ROWS + 8
    assert len(set(row_losses(corners, rate=0.0))) == 1


def test_dropout_is_the_same_whenever_seed_and_step_are():
    layout, batch = (8, 4), random_batch(1)
    a, metrics_a = one_step(layout, fresh_state(layout, step=7), batch, rate=0.5, seed=3)
    b, metrics_b = one_step(layout, fresh_state(layout, step=7), batch, rate=0.5, seed=3)
    assert_bitwise_same(a, b)
    assert_bitwise_same(metrics_a, metrics_b)


def numpy_sums(batch: Batch) -> dict[str, float]:
    """What an evaluation batch adds up to, in float64 from the model's logits."""
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    logits = np.float64(np.asarray(GPT(MODEL).apply({"params": host_state().params}, inputs)))
    logits = logits[..., : MODEL.n_vocab]
    losses = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    loss, tokens = (losses * batch["weights"]).sum(1), np.float64(batch["weights"].sum(1))
    mean = loss[tokens > 0] / tokens[tokens > 0]
    return {
        "loss": loss.sum(),
        "tokens": tokens.sum(),
        "rows": len(mean),
        "mean": mean.sum(),
        "square": np.square(mean).sum(),
    }


@cache
def eval_step(n_devices: int) -> Callable:
    """Of a model with dropout, which an evaluation must not apply."""
    return program(n_devices, **with_dropout(0.5)).eval_step


def evaluated(n_devices: int, params: Any, batch: Batch) -> dict[str, float]:
    """Every row being a real one, or as the batch says itself."""
    batch = {IS_REAL: np.ones(ROWS, np.float32), **batch}
    sums = eval_step(n_devices)(params, put_rows(make_mesh(n_devices), batch, axis=0))
    return {name: float(value) for name, value in sums.items()}


@pytest.mark.parametrize("n_devices", [1, 8])
def test_evaluation_sums_are_those_of_numpy(n_devices):
    batch = random_batch(5, uneven=True)
    batch["weights"] = np.ceil(batch["weights"])
    assert 0 < (batch["weights"].sum(1) == 0).sum() < ROWS
    params = jax.device_put(host_state().params, replicated(make_mesh(n_devices)))
    got = evaluated(n_devices, params, batch)
    assert got == pytest.approx(numpy_sums(batch), rel=2e-6)

    garbage = {**batch, "tokens": batch["tokens"].copy()}
    garbage["tokens"][batch["weights"].sum(1) == 0] = 49
    assert evaluated(n_devices, params, garbage) == got
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))

    padded = {**random_batch(6), IS_REAL: np.float32(np.arange(ROWS) < 20)}
    masked = {**padded, "weights": padded["weights"] * padded[IS_REAL][:, None]}
    assert evaluated(n_devices, params, padded) == pytest.approx(numpy_sums(masked), rel=2e-6)


def test_evaluation_means_of_rows_that_weigh_less_than_one_token_are_means():
    batch = random_batch(5)
    batch["weights"][:] = 1 / 16
    params = jax.device_put(host_state().params, replicated(make_mesh(8)))
    assert evaluated(8, params, batch) == pytest.approx(numpy_sums(batch), rel=2e-6)

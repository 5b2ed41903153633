"""Training on instructions: what has no weight has no say, however rows are filled or divided."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import without_speed
from instructions import config_on, conversations

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import make_mesh, put_rows
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.data.examples import stacked
from gptjax.data.instruct import Instructions, pad
from gptjax.data.loader import StepSource
from gptjax.data.packing import packed_row
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.places import UNSHARDED, ModelSharding
from gptjax.training import fit
from gptjax.training.objectives import language_modelling
from gptjax.training.program import assemble
from gptjax.training.state import TrainState

ROWS = 16


def opened(config: Config) -> tuple[Config, Instructions]:
    data = Instructions(config, None, None)
    return data.resolved(config), data


def drawn(config: Config) -> Any:
    """Parameters at which every leaf has a gradient."""
    draw = np.random.default_rng(1).standard_normal
    shapes = parameter_shapes(config.model)
    return jax.tree.map(lambda x: np.float32(0.1 * draw(x.shape)), shapes)


def assert_close(found: dict, expected: dict, most: float = 1e-6) -> None:
    """Every leaf to `most` of its largest entry."""
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        error = np.abs(np.float64(found[name]) - np.float64(leaf)).max()
        assert error <= most * np.abs(leaf).max(), name


def loss_and_gradients(config: Config, batch: dict, chunk: int = 0) -> tuple[float, dict]:
    """The total loss of a batch, and the gradients, by the objective alone."""
    losses = language_modelling(config.model, chunk, sparse=True)
    both = jax.jit(jax.value_and_grad(losses.loss))
    with jax.default_matmul_precision("highest"):
        loss, grads = both(drawn(config), {n: jnp.asarray(x) for n, x in batch.items()}, None)
    return float(loss), named_leaves(grads)


def uneven(config: Config, data: Instructions, packed: bool) -> dict[str, np.ndarray]:
    """`ROWS` rows with very different numbers of weighted targets, one of them without any."""
    items = data.items[0]
    longest = max(len(item.weights) for item in items)
    if packed:
        rows = [packed_row(items[i : i + 1 + i % 3], 3 * longest) for i in range(ROWS - 1)]
        rows.append(packed_row([], 3 * longest))
    else:
        rows = [pad(item, longest) for item in items[:ROWS]]
        rows[-1] = {**rows[-1], "weights": 0 * rows[-1]["weights"]}
    return stacked(rows)


def packed_and_padded(config: Config, data: Instructions) -> tuple[dict, dict]:
    """The same six examples in two rows, and in six."""
    items = data.items[0][:6]
    longest = max(len(item.weights) for item in items)
    padded = stacked([pad(item, longest) for item in items])
    return stacked([packed_row(items[:4], 4 * longest), packed_row(items[4:], 4 * longest)]), padded


CHUNKED = [("blockwise", 0), ("auto", 0), ("xla", 64), ("blockwise", 64)]


@pytest.mark.parametrize(
    ("attention", "chunk"),
    [("xla", 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in CHUNKED)],
)
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(tmp_path, attention, chunk):
    values = {"model.attention": attention, "model.n_ctx": 1024, "model.n_layer": 1}
    config, data = opened(config_on(conversations(12), tmp_path, **values))
    packed, padded = packed_and_padded(config, data)
    assert packed["tokens"].shape[1] > 256  # from there on auto is blockwise
    expected, found = loss_and_gradients(config, padded), loss_and_gradients(config, packed, chunk)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert_close(found[1], expected[1])


@pytest.mark.slow
def test_no_target_without_weight_has_a_say(tmp_path):
    """Against all logits and plain arithmetic, where these targets are others altogether."""
    config, data = opened(config_on(conversations(12), tmp_path, **{"model.n_layer": 1}))
    batch = stacked([pad(item, config.context) for item in data.items[0][:3]])
    weights_BT = batch["weights"] * np.array([[1.0], [0.5], [2.0]], np.float32)
    inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    others_BT = np.where(weights_BT == 0, (targets_BT + 7) % 257, targets_BT)
    model = GPT(config.model)

    def plain(params: Any) -> Any:
        logits_BTV: Any = model.apply({"params": params}, inputs_BT)
        log_p_BTV = jax.nn.log_softmax(logits_BTV[..., :257])
        return (
            -(np.eye(257, dtype=np.float32)[others_BT] * log_p_BTV).sum(-1).ravel()
            @ weights_BT.ravel()
        )

    with jax.default_matmul_precision("highest"):
        expected, grads = jax.jit(jax.value_and_grad(plain))(drawn(config))
    for chunk in (0, 64):
        found = loss_and_gradients(config, {**batch, "weights": weights_BT}, chunk)
        assert found[0] == pytest.approx(float(expected), rel=1e-6)
        assert_close(found[1], named_leaves(grads), 2e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.slow
def test_neither_the_length_nor_the_tokens_of_padding_have_a_say(tmp_path, packed):
    values = {"model.n_ctx": 1024, "model.n_layer": 1}
    config, data = opened(config_on(conversations(12), tmp_path, **values))
    short = packed_and_padded(config, data)[0 if packed else 1]
    expected = loss_and_gradients(config, short, 64)
    more = {
        name: np.pad(x, ((0, 0), (0, 60)), constant_values=7 if name == "documents" else 0)
        for name, x in short.items()
    }
    found = loss_and_gradients(config, more, 64)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert_close(found[1], expected[1])
    more["tokens"][:, short["tokens"].shape[1] :] = 99
    again = loss_and_gradients(config, more, 64)
    assert again[0] == found[0]
    assert_close(again[1], found[1], 0.0)


def raw_gradients(
    config: Config,
    batch: dict[str, np.ndarray],
    devices: int,
    micro_steps: int,
    split: ModelSharding = UNSHARDED,
) -> tuple[float, dict]:
    """Loss and gradients of one step, before anything is done with them."""
    made = assemble(config, make_mesh(devices, split))
    optimizer = optax.chain(optax.snapshot("raw", lambda grads: grads), made.optimizer)
    made = dataclasses.replace(made, optimizer=optimizer)
    params = drawn(config)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    rows = {
        name: x.reshape(micro_steps, ROWS // micro_steps, *x.shape[1:]) for name, x in batch.items()
    }
    state, metrics = jax.jit(made.step)(state, put_rows(made.mesh, rows, 1), jax.random.key(0))
    return float(metrics["loss"]), named_leaves(optax.tree.get(state.opt_state, "raw"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.slow
def test_devices_and_micro_steps_do_not_change_the_gradients(tmp_path, packed):
    values = {"model.n_ctx": 1024, "model.n_layer": 1, "train.loss_chunk_tokens": 64}
    values["instruct.lengths"] = "pack" if packed else "pad"
    config, data = opened(config_on(conversations(30), tmp_path, **values))
    batch = uneven(config, data, packed)
    counts = batch["weights"].sum(1)
    assert counts.min() == 0
    assert counts.max() > 2 * counts[counts > 0].min()
    loss, expected = raw_gradients(config, batch, 1, 1)
    divisions = [(*pair, UNSHARDED) for pair in ((1, 4), (2, 1), (2, 4), (4, 1), (4, 4), (8, 1))]
    for division in (*divisions, (8, 2, UNSHARDED), (8, 4, ModelSharding(fsdp=2, tensor=2))):
        found, leaves = raw_gradients(config, batch, *division)
        assert found == pytest.approx(loss, rel=1e-6)
        assert_close(leaves, expected)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"instruction": "A", "output": "B"}', "", '{"instruction": '], "line 3, is broken JSON"),
        (['{"messages": [{"role": "user", "content": "A"}]}'], "ends with a message of the user"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(tmp_path, lines, message):
    config = config_on([], tmp_path)
    (tmp_path / "instructions.json").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        fit.fit(config, tmp_path / "run")
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["instructions.json"]


def metrics_of(run: Any) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


@pytest.mark.parametrize(
    ("lengths", "updates_per_call"),
    [("pack", 1), ("pad", 3), pytest.param("pad", 1, marks=pytest.mark.exhaustive)],
)
@pytest.mark.slow
def test_the_whole_loop_gives_each_step_the_weights_of_its_own_rows(
    tmp_path, lengths, updates_per_call
):
    """Weights that were kept from an earlier batch of the same shape would show here."""
    values = {
        "instruct.lengths": lengths, "train.updates_per_call": updates_per_call,
        "train.epochs": 3, "train.eval_every_epochs": 1, "model.n_layer": 1, "optim.peak_lr": 1e-2,
    }  # fmt: skip
    config = config_on(conversations(60), tmp_path, **values)
    resolved, data = opened(config)
    steps = resolved.train.max_steps
    source = StepSource(data, batch_schedule(resolved), steps, resolved.train.seed)
    expected = [float(source[i]["weights"].sum()) for i in range(steps)]
    assert len(set(expected)) > steps // 2
    assert fit.fit(config, tmp_path / "run") == 0
    rows = metrics_of(tmp_path / "run")
    assert [row["tokens"] for row in rows] == expected
    validated = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(validated) == 3
    assert validated[-1] < validated[0]


@pytest.mark.slow
def test_the_loss_on_responses_of_real_instructions_falls(tmp_path, test_data):
    found = json.loads((test_data / "instructions.json").read_text())
    values = {"train.epochs": 2, "train.eval_every_epochs": 1, "optim.peak_lr": 3e-3}
    config = config_on(found, tmp_path, **{**values, "data.tokenizer": "bpe:512"})
    assert fit.fit(config, tmp_path / "run") == 0
    validated = [row["val_loss"] for row in metrics_of(tmp_path / "run") if "val_loss" in row]
    assert validated[1] < validated[0] < 6.3

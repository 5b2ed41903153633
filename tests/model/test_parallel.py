"""Any mesh trains as one device does, sends what it should and holds its share alone."""

import dataclasses
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXHAUSTIVE, ROOT, environment_on
from jax.sharding import PartitionSpec as P

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import BatchLayout, make_mesh, model_sharding, put_rows, row_groups
from gptjax.config import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.places import FSDP, TENSOR, UNSHARDED, ModelSharding, leaves
from gptjax.planning.hlo import bytes_by_axes, collectives
from gptjax.training.autotune import memory_needed
from gptjax.training.optimizer import make_optimizer
from gptjax.training.program import Program, assemble
from gptjax.training.state import TrainState, abstract_state

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1)]
REPRESENTATIVE = [(2, 2, 2), (1, 8, 1)]
ONE_FAST = [pytest.param(m, marks=() if m == (2, 2, 2) else pytest.mark.slow) for m in MESHES]
MODEL = ModelConfig(
    n_layer=2, n_head=8, n_embd=64, n_ctx=16, n_vocab=200, dtype="float32", remat="full"
)
ROWS = 16
Sizes = tuple[int, int, int]


def lowered(
    sizes: Sizes, micro_steps: int, wire: str = "float32", model: ModelConfig = MODEL
) -> jax.stages.Lowered:
    """The step of one layout, not compiled yet: 16 rows of the small model, or one a device."""
    made = program(ModelSharding(*sizes[1:]), math.prod(sizes), model, wire_dtype=wire)
    groups = row_groups(made.mesh)
    layout = BatchLayout(micro_steps, ROWS // groups if model is MODEL else 1, groups, model.n_ctx)
    return made.train_step.lower(*made.arguments(layout))


def program(split: ModelSharding, devices: int, model: ModelConfig, **train: Any) -> Program:
    """The program of a model that is divided so among so many devices."""
    chunk = 64 if model.n_vocab == MODEL.n_vocab else 2048
    train_config = TrainConfig(max_steps=10, loss_chunk_tokens=chunk, **train)
    config = Config(model=model, optim=OptimConfig(warmup_steps=2), train=train_config)
    return assemble(config, make_mesh(devices, split))


def local_parameters(sizes: Sizes) -> int:
    """Scalars of the parameters on one device, by the table of places."""
    return sum(leaf.part(ModelSharding(*sizes[1:])) for leaf in leaves(MODEL))


@cache
def run_on(sizes: Sizes, directory: Path, starts_at: Path | None = None) -> dict[str, Any]:
    """Twenty steps in a process of their own, and a checkpoint of them."""
    if starts_at is not None:
        subprocess.run(["cp", "-r", str(starts_at), str(directory)], check=True)
    script = ROOT / "tests" / "mesh_losses.py"
    words = [sys.executable, str(script), *map(str, sizes), str(directory)]
    done = subprocess.run(words, env=environment_on(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_same_numbers(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for ours, theirs in zip(got["steps"], expected["steps"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert got["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-5)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meshes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "continued_on"),
    [
        pytest.param(one, other, marks=() if one in REPRESENTATIVE else EXHAUSTIVE)
        for one, other in zip(MESHES, [*MESHES[1:], MESHES[0]], strict=True)
    ],
)
def test_twenty_steps_are_those_of_one_device_and_go_on_elsewhere(sizes, continued_on, checkpoints):
    """Each mesh's checkpoint is continued by the next one."""
    here, alone = checkpoints / f"{sizes}", checkpoints / "alone"
    expected = run_on((1, 1, 1), alone)
    assert expected["steps"][-1]["loss"] < expected["steps"][0]["loss"] - 0.3
    got = run_on(sizes, here)
    assert_same_numbers(got, expected)
    moments_and_parameters = 3 * 4 * local_parameters(sizes)
    assert moments_and_parameters <= got["bytes"] < moments_and_parameters + 100

    expected = run_on((1, 1, 1), checkpoints / "alone, longer", alone)
    got = run_on(continued_on, checkpoints / f"{sizes}, longer", here)
    assert got["steps"][0]["loss"] < 5.2  # of what was trained before
    assert_same_numbers(got, expected)


@pytest.mark.parametrize("sizes", ONE_FAST)
@pytest.mark.parametrize("micro_steps", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_gradients_cross_data_once_per_step(sizes, micro_steps):
    hlo = str(lowered(sizes, micro_steps).compile().as_text())
    mesh = dict(make_mesh(split=ModelSharding(*sizes[1:])).shape)
    crossing = [c for c in collectives(hlo) if c.elements >= 64 and "data" in c.axes(mesh)]
    assert {c.kind for c in crossing} <= {"all-reduce"}
    if sizes[0] > 1:
        assert sum(c.bytes for c in crossing) == pytest.approx(4 * local_parameters(sizes), abs=8)
    assert not any(c.is_looped for c in crossing)
    # what is on every device along fsdp is added up with it
    reduced = {c.axes(mesh) for c in crossing}
    expected = {("data",), ("data", "fsdp")} if sizes[1] > 1 else {("data",)}
    assert reduced == (expected if sizes[0] > 1 else set())


@pytest.mark.parametrize("sizes", [pytest.param((1, 8, 1), marks=pytest.mark.slow), (4, 2, 1)])
def test_weights_are_gathered_and_activations_stay(sizes):
    """Over fsdp: every matrix once forwards and once backwards, its gradient once; nothing else."""
    hlo = str(lowered(sizes, 2).compile().as_text())
    mesh = dict(make_mesh(split=ModelSharding(*sizes[1:])).shape)
    moved = bytes_by_axes(collectives(hlo), mesh)
    embeddings = 4 * (MODEL.padded_vocab + MODEL.n_ctx) * MODEL.n_embd
    matrices = 4 * MODEL.n_layer * 12 * MODEL.n_embd**2
    along = {kind: n for (axes, kind), n in moved.items() if axes == ("fsdp",)}
    assert along.pop("all-gather") == 2 * 2 * matrices + embeddings
    assert along.pop("reduce-scatter") == 2 * (matrices + embeddings)
    everywhere = 4 * local_parameters((1, 1, 1)) - matrices - embeddings
    expected = everywhere if sizes[0] == 1 else 0  # and the loss and other scalars with them
    assert sum(along.values()) == pytest.approx(expected, abs=32 if expected else 0)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1)])
def test_a_bfloat16_wire_carries_half(sizes):
    """In the program as it is written: a CPU's compiler makes float32 of it again."""
    mesh = dict(make_mesh(split=ModelSharding(*sizes[1:])).shape)
    sent = {}
    for wire in ("float32", "bfloat16"):
        hlo = lowered(sizes, 2, wire).as_text(dialect="hlo")
        found = [c for c in collectives(hlo) if c.elements > 1 and "data" in c.axes(mesh)]
        sent[wire] = sum(c.bytes for c in found)
    assert sent["float32"] == 4 * local_parameters(sizes) == 2 * sent["bfloat16"]


@pytest.mark.parametrize(
    ("cfg", "devices", "local", "words"),
    [
        (MeshConfig(fsdp=3), 8, 8, "mesh.fsdp 3 x mesh.tensor 1 = 3 does not divide the 8 devices"),
        (MeshConfig(data=3, fsdp=2), 8, 8, "leave mesh.data out, or make it 4"),
        (MeshConfig(tensor=4), 8, 2, "mesh.tensor 4 does not divide the 2 devices of a process"),
    ],
)
def test_a_mesh_that_is_not_there_is_refused(cfg, devices, local, words):
    with pytest.raises(UserError, match="^.*" + words.replace("(", r"\(")):
        model_sharding(cfg, devices, local)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (ModelSharding(fsdp=5), "mesh.fsdp 5 does not divide model.n_embd, 64: try --mesh.fsdp 4"),
        (
            ModelSharding(tensor=3),
            "mesh.tensor 3 does not divide model.n_head, 8: try --mesh.tensor 2",
        ),
    ],
)
def test_a_model_that_does_not_divide_is_refused(split, words):
    with pytest.raises(UserError, match=words):
        split.check(MODEL)


def test_every_parameter_is_divided_as_the_table_says():
    shapes = parameter_shapes(MODEL)
    specs = named_leaves(param_specs(shapes, ModelSharding(2, 1)))
    assert specs["h/attn/c_proj/kernel"] == P(None, None, FSDP)
    assert specs["ln_f/scale"] == P()
    assert specs.keys() == named_leaves(shapes).keys()


def test_moments_lie_with_their_parameters():
    optimizer = make_optimizer(OptimConfig(), 10)
    state = abstract_state(MODEL, optimizer, make_mesh(split=ModelSharding(2, 2)))
    places = {name: x.sharding.spec for name, x in named_leaves(state).items()}
    for moment in ("mu", "nu"):
        (kernel,) = [n for n in places if n.endswith(f"{moment}/h/mlp/c_fc/kernel")]
        assert places[kernel] == P(None, FSDP, TENSOR)
    assert places["step"] == P()


@pytest.mark.parametrize(
    ("sizes", "tied_head"),
    [
        ((2, 2, 2), True),
        pytest.param((2, 2, 2), False, marks=EXHAUSTIVE),
        *(pytest.param(m, True, marks=pytest.mark.slow) for m in REPRESENTATIVE[1:]),
        *(pytest.param(m, True, marks=EXHAUSTIVE) for m in MESHES if m not in REPRESENTATIVE),
    ],
)
def test_raw_gradients_on_eight_devices_are_those_on_one(sizes, tied_head):
    model = dataclasses.replace(MODEL, tied_head=tied_head, remat="none")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, MODEL.n_vocab, (2, ROWS // 2, MODEL.n_ctx + 1), dtype=np.int32)
    batch = {"tokens": tokens, "weights": np.float32(rng.random(tokens[..., 1:].shape) < 0.7)}
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda x: np.float32(0.1 * draw(x.shape)), parameter_shapes(model))

    def gradients(split: ModelSharding, devices: int) -> dict[str, Any]:
        made = program(split, devices, model)
        optimizer = optax.chain(optax.snapshot("raw", lambda grads: grads), made.optimizer)
        step = dataclasses.replace(made, optimizer=optimizer).step
        state = TrainState(jnp.int32(0), params, optimizer.init(params))
        rows = put_rows(made.mesh, batch, axis=1)
        state, _ = jax.jit(step)(state, rows, jax.random.key(0))
        return named_leaves(optax.tree.get(state.opt_state, "raw"))

    expected = gradients(UNSHARDED, 1)
    for name, leaf in gradients(ModelSharding(*sizes[1:]), 8).items():
        error = np.linalg.norm(np.float64(leaf) - np.float64(expected[name]))
        assert error <= 2e-6 * np.linalg.norm(expected[name]), name


@pytest.mark.slow
def test_eight_devices_hold_a_model_that_one_could_not():
    """GPT-2's largest: compiled, not run; a sixth of the state, and what a pass keeps."""
    model = ModelConfig(
        n_layer=48, n_head=25, n_embd=1600, n_ctx=1024, n_vocab=50257, dtype="float32", remat="full"
    )
    one, eight = (memory_needed(lowered((1, n, 1), 1, model=model).compile()) for n in (1, 8))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model)))
    state = 4 * 4 * parameters  # parameters, two moments, gradients
    layer_inputs = 4 * model.n_layer * model.n_ctx * model.n_embd
    logits_and_their_gradient = 2 * 4 * model.n_ctx * model.padded_vocab
    assert one > state
    assert eight < state / 6 + layer_inputs + logits_and_their_gradient

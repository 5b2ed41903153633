"""Fine-tuning over any mesh: the gradients of adapters, heads and last blocks are those of one
device, raw, before clipping and Adam.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest

from gptjax.base.tree import as_tree, named_leaves
from gptjax.cluster.mesh import make_mesh, put_rows
from gptjax.config import ClassifyConfig, Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.config.schema import CLASSIFY
from gptjax.model.freezing import trained_leaves
from gptjax.model.gpt import parameter_shapes
from gptjax.model.places import ModelSharding
from gptjax.training.program import Program, assemble
from gptjax.training.state import TrainState

ROWS, TIME, VOCAB = 16, 8, 125
MODEL = ModelConfig(
    n_layer=2, n_head=4, n_embd=16, n_ctx=TIME, n_vocab=VOCAB, dtype="float32",
    n_special=3, n_classes=3, remat="dots",
)  # fmt: skip
LORA: dict[str, Any] = {"lora_rank": 2, "lora_targets": ("c_attn", "c_proj", "c_fc")}
LAST: dict[str, Any] = {"trainable": ("h/*", "ln_f/*", "clf/*"), "trainable_layers": 1}
TABLE: dict[str, Any] = {"trainable": ("wte/*", "*/bias", "clf/*")}
MESHES = [(8, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
CASES = [
    ({**LORA, "remat": "none"}, {}, 0.0),
    (LORA, {}, 0.5),
    ({}, LAST, 0.5),
    ({}, TABLE, 0.0),
    ({"clf_pdrop": 0.0}, {}, 0.5),
]
FAST = {((2, 2, 2), 1)}  # (mesh, case); the others prove the same again


def each() -> list[Any]:
    pairs = [(mesh, case) for case in range(len(CASES)) for mesh in MESHES]
    return [pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow) for pair in pairs]


def program(mesh: tuple[int, int, int], case: int) -> Program:
    model, optim, lm_weight = CASES[case]
    config = Config(
        model=dataclasses.replace(MODEL, **model),
        optim=OptimConfig(warmup_steps=1, **optim),
        train=TrainConfig(max_steps=9, loss_chunk_tokens=24),
        classify=ClassifyConfig(read="extract", lm_weight=lm_weight, labels=("a", "b", "c")),
        task=CLASSIFY,
    )
    data, fsdp, tensor = mesh
    made = assemble(config, make_mesh(data * fsdp * tensor, split=ModelSharding(fsdp, tensor)))
    raw = optax.snapshot("raw_gradients", lambda gradients: gradients)
    return dataclasses.replace(made, optimizer=optax.chain(raw, made.optimizer))


def batch() -> dict[str, np.ndarray]:
    """Two sequences an example in `similarity`'s way would do as well: here one, of any length."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(3, TIME + 1, (ROWS, 1), dtype=np.int32)
    tokens = chance.integers(0, VOCAB + 3, (ROWS, 1, TIME), dtype=np.int32)
    weights = np.ones(ROWS, np.float32)
    weights[5:7] = 0.0  # a last partial batch
    return {
        "tokens": tokens,
        "lengths": lengths,
        "label": chance.integers(0, 3, ROWS, dtype=np.int32),
        "class_weight": chance.choice(np.float32([0.5, 1.0, 2.0]), ROWS),
        "weights": weights,
    }


@cache
def raw_gradients(mesh: tuple[int, int, int], case: int) -> dict[str, np.ndarray]:
    """The gradients of one step of two micro-steps, whatever is trained."""
    made = program(mesh, case)
    chance = np.random.default_rng(1)
    shapes = named_leaves(parameter_shapes(made.config.model))
    params = {n: np.float32(chance.normal(0, 0.2, x.shape)) for n, x in shapes.items()}
    like = made.abstract_state()
    drawn = jax.device_put(as_tree(params), made.places.params)
    opt_state = jax.jit(
        lambda p: made.optimizer.init(made.trained.split(p)[0]),
        out_shardings=made.places.opt_state,
    )(drawn)
    state = TrainState(jax.device_put(np.int32(0), like.step.sharding), drawn, opt_state)
    cut = {name: x.reshape(2, ROWS // 2, *x.shape[1:]) for name, x in batch().items()}
    state, _ = made.train_step(state, put_rows(made.mesh, cut, axis=1), made.key())
    found = optax.tree.get(state.opt_state, "raw_gradients")
    after = named_leaves(jax.device_get(state.params))
    for name, before in params.items():  # what is frozen is so on every mesh, bit for bit
        kept = slice(0, made.trained.first_block if name.startswith("h/") else 0)
        if not made.trained.everything and name not in made.trained.names:
            kept = slice(None)
        np.testing.assert_array_equal(after[name][kept], before[kept], err_msg=name)
    return {name: np.asarray(x) for name, x in named_leaves(jax.device_get(found)).items()}


@pytest.mark.parametrize(("mesh", "case"), each())
def test_any_mesh_gives_the_gradients_of_one_device(mesh, case):
    one, several = raw_gradients((1, 1, 1), case), raw_gradients(mesh, case)
    model, optim, _ = CASES[case]
    chosen = trained_leaves(dataclasses.replace(MODEL, **model), **_as_arguments(optim))
    assert several.keys() == one.keys()
    assert chosen.everything or one.keys() == chosen.names
    for name, expected in one.items():
        largest = np.abs(expected).max()
        assert largest > 0, name
        np.testing.assert_allclose(several[name], expected, atol=1e-6 * largest, err_msg=name)


def _as_arguments(optim: dict[str, Any]) -> dict[str, Any]:
    return {"patterns": optim.get("trainable", ()), "last_blocks": optim.get("trainable_layers")}

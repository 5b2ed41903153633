"""Gradients cross the network once per update: read off the compiled program, where numbers cannot.

An update that averages gradients in every micro-step gives the same parameters, so only the HLO
shows it. The checker is tried on programs known to be wrong before it is believed.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from gptjax.config import ModelConfig, OptimConfig
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.places import Split
from gptjax.planning.collectives import bytes_by_axes, collectives
from gptjax.training import step as step_module
from gptjax.training.loss import cross_entropy_rows
from gptjax.training.mesh import (
    BatchLayout,
    abstract_batch,
    make_mesh,
    put_rows,
    replicated,
)
from gptjax.training.optimizer import make_optimizer
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.state import TrainState, abstract_state
from gptjax.training.tasks import Task, language_modelling
from gptjax.tree import count, placed

DEVICES, CONTEXT, VOCAB = 8, 8, 50
MODEL = ModelConfig(
    n_layer=2, n_head=2, n_embd=16, n_ctx=CONTEXT, n_vocab=VOCAB, dtype="float32", tied_head=False
)


def problems(hlo: str, n_parameters: int, micro_steps: int) -> set[str]:
    """What is wrong with a program that should send every gradient once per update."""
    found = collectives(hlo)
    large, scalars = [c for c in found if c.elements > 1], [c for c in found if c.elements <= 1]
    looped = micro_steps > 1
    sent = n_parameters + (not looped)  # without a loop the loss goes along
    wrong = {
        "something else than an all-reduce": any(c.kind != "all-reduce" for c in found),
        "not one all-reduce of all gradients": [c.elements for c in large] != [sent],
        "not four bytes a parameter": sum(c.bytes for c in large) != 4 * sent,
        "gradients cross in every micro-step": looped and not all(c.is_gated for c in large),
        "scalars cross in every micro-step": looped and any(c.is_looped for c in scalars),
    }  # fmt: skip
    return {name for name, is_wrong in wrong.items() if is_wrong}


def compiled(loss: Callable, params: Any, micro_steps: int) -> str:
    """The HLO of the update on eight devices."""
    mesh, optim = make_mesh(DEVICES), OptimConfig(warmup_steps=2)
    optimizer = make_optimizer(optim, 10)
    state = jax.eval_shape(lambda p: TrainState(jnp.int32(0), p, optimizer.init(p)), params)
    tokens = np.zeros((micro_steps, DEVICES, CONTEXT + 1), np.int32)
    batch = {"tokens": tokens, "weights": np.ones(tokens[..., 1:].shape, np.float32)}
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    update = step_module.make_update(
        Task(loss, row_losses=loss),
        optimizer,
        learning_rate_schedule(optim, 10),
        mesh,
        P(),
        micro_steps,
        dropout=False,
    )
    step = step_module.make_train_step(update, replicated(mesh))
    abstract = placed(state, replicated(mesh))
    return step.lower(abstract, put_rows(mesh, batch, axis=1), key).compile().as_text()


BIGRAM = {
    "wte": {"embedding": jax.ShapeDtypeStruct((VOCAB, 8), np.float32)},
    "head": {
        "kernel": jax.ShapeDtypeStruct((8, VOCAB), np.float32),
        "bias": jax.ShapeDtypeStruct((VOCAB,), np.float32),
    },
}


def bigram_loss(params: Any, batch: Any, _: Any) -> jax.Array:
    """The smallest task with every kind of leaf: it compiles in a fraction of a second."""
    x_BTD = params["wte"]["embedding"][batch["tokens"][:, :-1]]
    logits_BTV = x_BTD @ params["head"]["kernel"] + params["head"]["bias"][None, None]
    return cross_entropy_rows(logits_BTV, batch["tokens"][:, 1:], batch["weights"]).sum()


@pytest.mark.parametrize("micro_steps", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_gradients_of_a_gpt_cross_the_network_once_per_update(micro_steps):
    params = parameter_shapes(MODEL)
    assert count(params) > 2 * 128 * MODEL.n_embd  # both tables with their padded rows
    hlo = compiled(language_modelling(MODEL, 8).loss, params, micro_steps)
    assert problems(hlo, count(params), micro_steps) == set()


@cache
def bigram_hlo(micro_steps: int) -> str:
    return compiled(bigram_loss, BIGRAM, micro_steps)


@pytest.mark.parametrize("micro_steps", [1, 4])
def test_gradients_of_any_task_do(micro_steps):
    hlo = bigram_hlo(micro_steps)
    assert problems(hlo, count(BIGRAM), micro_steps) == set()
    scalars = [c for c in collectives(hlo) if c.elements == 1]  # tokens, and the loss of a loop
    assert [c.is_gated for c in scalars] == [False] * (1 if micro_steps == 1 else 2)


def without_gate(total: Callable, micro_steps: int) -> optax.MultiSteps:
    """MultiSteps as its documentation suggests: the sum is the inner chain's first part."""

    def update(updates: Any, state: Any, params: Any = None, **_: Any):
        return total(updates), state

    chain = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    return optax.MultiSteps(chain, every_k_schedule=micro_steps)


def test_the_checker_sees_an_average_in_every_micro_step(monkeypatch):
    monkeypatch.setattr(step_module, "accumulate", without_gate)
    hlo = compiled(bigram_loss, BIGRAM, micro_steps=4)
    assert problems(hlo, count(BIGRAM), 4) == {"gradients cross in every micro-step"}


def test_the_checker_sees_the_sum_that_autodiff_inserts_without_the_cast(monkeypatch):
    no_cast = SimpleNamespace(**{**vars(lax), "pcast": lambda x, *_, **__: x})
    monkeypatch.setattr(step_module, "lax", no_cast)
    hlo = compiled(bigram_loss, BIGRAM, micro_steps=4)
    assert "gradients cross in every micro-step" in problems(hlo, count(BIGRAM), 4)


def test_the_checker_counts_what_crosses():
    hlo = bigram_hlo(4)
    assert problems(hlo, count(BIGRAM) + 1, 4) == {
        "not one all-reduce of all gradients", "not four bytes a parameter"
    }  # fmt: skip
    gathered = hlo.replace(" all-reduce(", " all-gather(")
    assert problems(gathered, count(BIGRAM), 4) == {"something else than an all-reduce"}


MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{{0,2,4,6},{1,3,5,7}}", ("data", "fsdp")),
        ("[4,2]<=[8]", ("tensor",)),
        ("[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("mesh['a'=4,'b'=2] {'b'}", ("tensor",)),
        ("mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("mesh['a'=1,'b'=2,'c'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}", ("fsdp",)),
        ("mesh['a'=4,'b'=2] {'a','b'}", ("data", "fsdp", "tensor")),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_groups_are_understood_in_every_form(groups, axes):
    (found,) = collectives(
        f"ENTRY main (p: f32[64]) -> f32[64] {{\n  r = f32[64]{{0}} all-reduce(p), "
        f"replica_groups={groups}, use_global_device_ids=true\n}}\n"
    )
    assert found.axes(MESH) == axes


def test_groups_in_an_unknown_form_are_no_silence():
    with pytest.raises(ValueError, match="not understood: replica_groups=ring"):
        collectives(
            "ENTRY main () -> f32[] {\n  r = f32[4] all-gather(p), replica_groups=ring(8)\n}\n"
        )


def test_what_the_compiler_inserts_for_muon_is_counted():
    """Its products over divided matrices move them, which AdamW's arithmetic does not."""
    sent = {}
    for name in ("adamw", "muon"):
        split, optim = Split(fsdp=4), OptimConfig(name=name)
        mesh, optimizer = make_mesh(8, split), make_optimizer(optim, 10)
        model = dataclasses.replace(MODEL, n_embd=32)
        params = parameter_shapes(model)
        specs, schedule = param_specs(params, split), learning_rate_schedule(optim, 10)
        task = language_modelling(model, 8, split)
        update = step_module.make_update(task, optimizer, schedule, mesh, specs, 1, dropout=False)
        state = abstract_state(model, optimizer, mesh)
        places = jax.tree.map(lambda x: x.sharding, state)
        batch = abstract_batch(mesh, BatchLayout(1, 1, 8, CONTEXT))
        key = jax.device_put(jax.random.key(0), replicated(mesh))
        program = step_module.make_train_step(update, places).lower(state, batch, key).compile()
        moved = bytes_by_axes(collectives(str(program.as_text())), dict(mesh.shape))
        sent[name] = sum(n for (axes, _), n in moved.items() if axes == ("fsdp",))
    assert sent["muon"] > 1.5 * sent["adamw"]

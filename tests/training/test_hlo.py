"""Gradients cross the network once per step: read off the compiled program, where numbers cannot.

A step that averages gradients in every micro-step gives the same parameters, so only the HLO
shows it. The checker is tried on programs known to be wrong before it is believed.
"""

import dataclasses
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

from gptjax.base.tree import abstract_tree, count_elements
from gptjax.cluster.mesh import DATA, BatchLayout, make_mesh, replicated
from gptjax.config import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.model.gpt import parameter_shapes
from gptjax.model.losses import cross_entropy_rows
from gptjax.model.places import ModelSharding
from gptjax.planning.hlo import bytes_by_axes, collectives
from gptjax.training import step as step_module
from gptjax.training.objectives import Losses
from gptjax.training.optimizer import accumulation
from gptjax.training.program import assemble
from gptjax.training.state import TrainState

DEVICES, CONTEXT, VOCAB = 8, 8, 50
MODEL = ModelConfig(
    n_layer=2, n_head=2, n_embd=16, n_ctx=CONTEXT, n_vocab=VOCAB, dtype="float32", tied_head=False
)


def problems(hlo: str, n_parameters: int) -> set[str]:
    """What is wrong with a program that should send every gradient once per step."""
    found = collectives(hlo)
    large, scalars = [c for c in found if c.elements > 1], [c for c in found if c.elements <= 1]
    sent = n_parameters + 1  # the loss goes along
    wrong = {
        "something else than an all-reduce": any(c.kind != "all-reduce" for c in found),
        "not one all-reduce of all gradients": [c.elements for c in large] != [sent],
        "not four bytes a parameter": sum(c.bytes for c in large) != 4 * sent,
        "gradients cross in every micro-step": any(c.is_looped for c in large),
        "scalars cross in every micro-step": any(c.is_looped for c in scalars),
    }  # fmt: skip
    return {name for name, is_wrong in wrong.items() if is_wrong}


def compiled(micro_steps: int, losses: Losses | None = None, params: Any = None) -> str:
    """The HLO of the step on eight devices, of the model or of other losses."""
    config = Config(model=MODEL, optim=OptimConfig(warmup_steps=2), train=TrainConfig(max_steps=10))
    made = assemble(config, make_mesh(DEVICES))
    step, (state, batch, *key) = made.train_step, made.arguments(BatchLayout(micro_steps, 1, 8, 8))
    if losses is not None:
        state = jax.eval_shape(
            lambda p: TrainState(jnp.int32(0), p, made.optimizer.init(p)), params
        )
        state = abstract_tree(state, replicated(made.mesh))
        arguments = (losses, made.optimizer, optax.constant_schedule(1e-3), made.mesh, P())
        one_step = step_module.make_step(*arguments, dropout=False)
        step = step_module.make_train_step(one_step, replicated(made.mesh))
    return step.lower(state, batch, *key).compile().as_text()


HEAD = {
    "kernel": jax.ShapeDtypeStruct((8, VOCAB), np.float32),
    "bias": jax.ShapeDtypeStruct((VOCAB,), np.float32),
}
BIGRAM = {  # under names that the table of leaves knows
    "wte": {"embedding": jax.ShapeDtypeStruct((VOCAB, 8), np.float32)},
    "h": {"mlp": {"c_fc": HEAD}},
}


def bigram_loss(params: Any, batch: Any, _: Any) -> jax.Array:
    """The smallest task with every kind of leaf: it compiles in a fraction of a second."""
    x_BTD = params["wte"]["embedding"][batch["tokens"][:, :-1]]
    head = params["h"]["mlp"]["c_fc"]
    logits_BTV = x_BTD @ head["kernel"] + head["bias"][None, None]
    return cross_entropy_rows(logits_BTV, batch["tokens"][:, 1:], batch["weights"]).sum()


def all_count(batch: Any) -> jax.Array:
    return jnp.ones(batch["tokens"][..., 1:].shape)


BIGRAM_LOSSES = Losses(
    bigram_loss, row_losses=lambda *given: {"loss": bigram_loss(*given, None)}, weights=all_count
)


@pytest.mark.parametrize("micro_steps", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_gradients_of_a_gpt_cross_the_network_once_per_step(micro_steps):
    params = parameter_shapes(MODEL)
    assert count_elements(params) > 2 * 128 * MODEL.n_embd  # both tables with their padded rows
    hlo = compiled(micro_steps)
    assert problems(hlo, count_elements(params)) == set()


@cache
def bigram_hlo(micro_steps: int) -> str:
    return compiled(micro_steps, BIGRAM_LOSSES, BIGRAM)


@pytest.mark.parametrize("micro_steps", [1, 4])
def test_gradients_of_any_task_do(micro_steps):
    hlo = bigram_hlo(micro_steps)
    assert problems(hlo, count_elements(BIGRAM)) == set()
    assert sum(c.elements == 1 for c in collectives(hlo)) == 1  # the count of tokens


def summing_at_once(micro_steps: int) -> Any:
    """Gradients that are added up over devices before they are averaged over micro-steps."""
    average = accumulation(micro_steps)

    def update(grads: Any, state: Any) -> Any:
        return average.update(lax.psum(grads, DATA), state)

    return SimpleNamespace(init=average.init, update=update)


def test_the_checker_sees_a_sum_in_every_micro_step(monkeypatch):
    monkeypatch.setattr(step_module, "accumulation", summing_at_once)
    hlo = compiled(4, BIGRAM_LOSSES, BIGRAM)
    assert "gradients cross in every micro-step" in problems(hlo, count_elements(BIGRAM))


def test_the_checker_sees_the_sum_that_autodiff_inserts_without_the_cast(monkeypatch):
    no_cast = SimpleNamespace(**{**vars(lax), "pcast": lambda x, *_, **__: x})
    monkeypatch.setattr(step_module, "lax", no_cast)
    hlo = compiled(4, BIGRAM_LOSSES, BIGRAM)
    assert "gradients cross in every micro-step" in problems(hlo, count_elements(BIGRAM))


def test_the_checker_counts_what_crosses():
    hlo = bigram_hlo(4)
    assert problems(hlo, count_elements(BIGRAM) + 1) == {
        "not one all-reduce of all gradients", "not four bytes a parameter"
    }  # fmt: skip
    gathered = hlo.replace(" all-reduce(", " all-gather(")
    assert problems(gathered, count_elements(BIGRAM)) == {"something else than an all-reduce"}


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


@pytest.mark.slow
def test_what_the_compiler_inserts_for_muon_is_counted():
    """Its products over divided matrices move them, which AdamW's arithmetic does not."""
    sent = {}
    for name in ("adamw", "muon"):
        mesh, model = make_mesh(8, ModelSharding(fsdp=4)), dataclasses.replace(MODEL, n_embd=32)
        train = TrainConfig(max_steps=10, loss_chunk_tokens=8)
        config = Config(model=model, optim=OptimConfig(name=name), train=train)
        program = assemble(config, mesh).compile(BatchLayout(1, 1, 8, CONTEXT))
        moved = bytes_by_axes(collectives(str(program.as_text())), dict(mesh.shape))
        sent[name] = sum(n for (axes, _), n in moved.items() if axes == ("fsdp",))
    assert sent["muon"] > 1.5 * sent["adamw"]

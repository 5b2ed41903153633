"""A classification's step is that of Hugging Face's GPT-1 with GPT-1's two losses in torch.

The losses follow the released code of Radford et al. (2018): the mean cross-entropy of the labels,
and half the mean over all sequences of the mean cross-entropy of their tokens, among which the
special ones count.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from huggingface_side import config_of, torch_adamw

from gptjax.base.tree import as_tree, named_leaves
from gptjax.cluster.mesh import batch_layout, make_mesh, put_rows
from gptjax.config import ClassifyConfig, Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.config.schema import CLASSIFY
from gptjax.conversion.weights import from_huggingface, to_huggingface
from gptjax.training.objectives import classification
from gptjax.training.program import assemble

SHAPE: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 5,
    "n_embd": 40,
    "vocab_size": 301,
    "n_positions": 23,
}
CLF = ("clf/kernel", "clf/bias")
OPTIM = OptimConfig(peak_lr=6.25e-5, warmup_steps=0, weight_decay=0.01, beta2=0.999)
ROWS, TIME = 4, 17


def model_of(form: str, **fields: Any) -> ModelConfig:
    """GPT-1 with three special ids at the end of its 301."""
    plain = config_of("gpt1", SHAPE)
    classes = 1 if form == "choice" else 3
    return dataclasses.replace(plain, n_vocab=298, n_special=3, n_classes=classes, **fields)


def batch_of(form: str, time: int = TIME) -> dict[str, np.ndarray]:
    """Sequences of unequal length between start and extract, padded by ids that mean something.

    Two texts have the delimiter between them.
    """
    rng = np.random.default_rng(5)
    sequences = 2 if form in ("choice", "similarity") else 1
    lengths_BS = rng.integers(4, TIME + 1, (ROWS, sequences), dtype=np.int32)
    lengths_BS[0, 0] = TIME
    label_B = rng.integers(0, 2 if form == "choice" else 3, ROWS).astype(np.int32)
    tokens_BST = rng.integers(0, 298, (ROWS, sequences, time), dtype=np.int32)
    for row in range(ROWS):
        for sequence in range(sequences):
            real = np.random.default_rng([row, sequence]).integers(0, 298, TIME)
            length = lengths_BS[row, sequence]
            tokens_BST[row, sequence, :length] = [298, *real[: length - 2], 300]
            if form in ("pair", "similarity"):
                tokens_BST[row, sequence, length // 2] = 299
    return {
        "tokens": tokens_BST,
        "lengths": lengths_BS,
        "label": label_B,
        "class_weight": np.ones(ROWS, np.float32),
        "weights": np.ones(ROWS, np.float32),
    }


def torch_side(form: str, batch: dict[str, np.ndarray]):
    """Parameters before, the loss, and its gradients, under Hugging Face's names and `CLF`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import OpenAIGPTConfig, OpenAIGPTDoubleHeadsModel

    classes = 1 if form == "choice" else 3
    model: Any = OpenAIGPTDoubleHeadsModel(OpenAIGPTConfig(**SHAPE)).eval()
    model.multiple_choice_head.summary = head = torch.nn.Linear(SHAPE["n_embd"], classes)
    rng, parameters = np.random.default_rng(0), dict(model.named_parameters())
    for name, parameter in parameters.items():
        noise = rng.standard_normal(tuple(parameter.shape), np.float32) * np.float32(40**-0.5)
        is_scale = ".ln_" in name and name.endswith("weight")
        parameter.data = torch.from_numpy(noise + np.float32(is_scale))
    before = {name: p.detach().numpy().copy() for name, p in parameters.items()}

    tokens = torch.from_numpy(batch["tokens"]).long()
    lengths = torch.from_numpy(batch["lengths"]).long()
    found = model(tokens, mc_token_ids=lengths - 1)
    if form == "choice":
        scores_BC = found.mc_logits
    else:
        states_BSTD = model.transformer(tokens)[0]
        last_BS = torch.arange(ROWS)[:, None], torch.arange(tokens.shape[1]), lengths - 1
        scores_BC = head(states_BSTD[last_BS].sum(1))
    label_loss = cross_entropy(scores_BC, torch.from_numpy(batch["label"]).long())
    flat_MV = found.logits[:, :, :-1].flatten(0, 2)
    losses_BST = cross_entropy(flat_MV, tokens[:, :, 1:].flatten(), reduction="none")
    losses_BST = losses_BST.reshape(tokens[:, :, 1:].shape)
    mask_BST = (torch.arange(1, tokens.shape[2]) < lengths[:, :, None]).float()
    token_loss = ((losses_BST * mask_BST).sum(2) / mask_BST.sum(2)).mean()
    loss = label_loss + 0.5 * token_loss
    loss.backward()
    gradients: dict[str, Any] = {name: p.grad for name, p in parameters.items()}
    return before, loss.item(), {name: np.asarray(x) for name, x in gradients.items()}


def ours_of(theirs: dict[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """Hugging Face's parameters under our names; the special ids are rows of its table."""
    whole = dataclasses.replace(model_of(form), n_vocab=301, n_special=0, n_classes=0)
    body = {n: x for n, x in theirs.items() if "multiple_choice_head" not in n}
    kernel, bias = (theirs[f"multiple_choice_head.summary.{n}"] for n in ("weight", "bias"))
    return {**from_huggingface(body, whole, "torch's"), CLF[0]: kernel.T, CLF[1]: bias}


def theirs_of(ours: dict[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    whole = dataclasses.replace(model_of(form), n_vocab=301, n_special=0, n_classes=0)
    body = {name: x for name, x in ours.items() if name not in CLF}
    summary = {"weight": np.asarray(ours[CLF[0]]).T, "bias": np.asarray(ours[CLF[1]])}
    named = {f"multiple_choice_head.summary.{name}": x for name, x in summary.items()}
    return {**to_huggingface(body, whole), **named}


def one_step(form: str, before: dict[str, np.ndarray], batch: dict[str, np.ndarray]):
    """Loss, raw gradients and parameters after a step of two micro-steps of our program."""
    train = TrainConfig(batch_rows=ROWS, batch_tokens=ROWS * TIME, micro_batch=2, context=TIME)
    train = dataclasses.replace(train, max_steps=10)
    classify = ClassifyConfig(form=form, labels=("0", "1") if form == "choice" else ("a", "b", "c"))  # pyright: ignore
    config = Config(model_of(form), optim=OPTIM, train=train, classify=classify, task=CLASSIFY)
    made = assemble(config, make_mesh(1))
    chained = optax.chain(optax.snapshot("raw", lambda gradients: gradients), made.optimizer)
    made = dataclasses.replace(made, optimizer=chained)
    state = made.initial_state()._replace(params=jax.tree.map(np.array, as_tree(before)))
    micro = {name: x.reshape(2, 2, *x.shape[1:]) for name, x in batch.items()}
    state, metrics = made.compile(batch_layout(config, 1, 2))(
        jax.device_put(state, made.places), put_rows(made.mesh, micro, axis=1), made.key()
    )
    raw = named_leaves(optax.tree.get(state.opt_state, "raw"))
    return float(metrics["loss"]), raw, named_leaves(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["choice", "single", "pair", "similarity"])
def test_a_step_of_gpt_1_s_two_losses_is_torch_s(form):
    pytest.importorskip("transformers")
    batch = batch_of(form)
    theirs, loss, torch_gradients = torch_side(form, batch)
    before = ours_of(theirs, form)
    found, gradients, after = one_step(form, before, batch)
    assert found == pytest.approx(loss, abs=1e-5)
    unmoved = "clf/bias" if form == "choice" else ""  # it moves all scores of a choice alike
    expected = ours_of(torch_gradients, form)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error, largest = abs(gradient - expected[name]).max(), abs(expected[name]).max()
        assert error < 1e-5 * largest + 1e-7, name
        assert largest > 1e-4 or name == unmoved, name
    same = theirs_of(gradients, form)
    stepped = ours_of(torch_adamw(theirs, same, OPTIM), form)
    for name, parameter in after.items():
        np.testing.assert_allclose(parameter, stepped[name], rtol=0, atol=1e-6, err_msg=name)
        assert abs(stepped[name] - before[name]).max() > 0.9 * OPTIM.peak_lr or name == unmoved


@pytest.mark.slow
def test_the_length_of_the_padding_changes_neither_loss_nor_gradients():
    form, model = "choice", model_of("choice")
    losses = classification(model, ClassifyConfig(form="choice"))
    draw = np.random.default_rng(2).standard_normal
    shapes = assemble(
        Config(model, classify=ClassifyConfig(form="choice", labels=("0", "1")), task=CLASSIFY),
        make_mesh(1),
    ).abstract_state()
    params = jax.tree.map(lambda x: np.float32(0.2 * draw(x.shape)), shapes.params)
    both = jax.jit(jax.value_and_grad(lambda params, batch: losses.loss(params, batch, None)))
    loss, gradients = both(params, batch_of(form))
    longer, others = both(params, batch_of(form, 23))
    assert longer == pytest.approx(float(loss), abs=1e-6)
    found = named_leaves(others)
    for name, gradient in named_leaves(gradients).items():
        assert abs(found[name] - gradient).max() <= 1e-6, name

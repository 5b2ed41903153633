"""Attention inside documents: nothing of one ever reaches another, on any path."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import causal_inputs, gradients, normal, reference_attention
from small_runs import announced, tiny, trained

from gptjax.base.errors import UserError
from gptjax.cluster.mesh import make_mesh, put_rows
from gptjax.config import DataConfig, ModelConfig
from gptjax.data.examples import IS_REAL
from gptjax.evaluation.perplexity import evaluate_parts
from gptjax.model.attention import ATTENTIONS, document_numbers
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.places import ModelSharding
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs
from gptjax.tokenizers.gpt1 import GPT1Tokenizer
from gptjax.tokenizers.plain import ByteTokenizer
from gptjax.tokenizers.registry import document_separator
from gptjax.training.objectives import language_modelling
from gptjax.training.setup import Setup
from gptjax.training.step import make_eval_step

EOT, TIME = 7, 300
PATHS = ["xla", "blockwise"]
MODEL = ModelConfig(2, 2, 16, n_ctx=TIME, n_vocab=50, dtype="float32")
# two documents of other lengths in every row, the cuts in and out of step with tiles of 64
CUTS = [(1, 64), (63, 200), (128, 129), (299, 299)]
DOCUMENTS_BT = np.array([[(t >= a) + (t >= b) for t in range(TIME)] for a, b in CUTS])


@cache
def parameters(cfg):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), parameter_shapes(cfg))


def some_tokens(cuts=CUTS):
    """Rows of tokens [B, T + 1] with an end-of-text at each of their cuts and nowhere else."""
    tokens_BT = np.random.default_rng(1).integers(EOT + 1, 50, (len(cuts), TIME + 1))
    for row_T, at in zip(tokens_BT, cuts, strict=True):
        row_T[list(at)] = EOT
    return tokens_BT.astype(np.int32)


def logits_of(cfg, tokens_BT):
    def run(params, tokens_BT):
        documents_BT = document_numbers(tokens_BT, EOT)
        return GPT(cfg).apply({"params": params}, tokens_BT, documents_BT=documents_BT)

    return np.asarray(jax.jit(run)(parameters(cfg), tokens_BT[:, :TIME]))


def test_a_document_begins_at_the_end_of_text_before_it():
    tokens_BT = jnp.array([[1, 2, EOT, 3, 4, EOT, EOT, 5], [EOT, 1, 2, 3, 4, 5, 6, EOT]])
    expected = [[0, 0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1, 2]]
    np.testing.assert_array_equal(document_numbers(tokens_BT, EOT), expected)


@pytest.mark.parametrize("path", PATHS)
def test_values_and_gradients_are_those_of_each_document_by_itself(path):
    q, k, v = causal_inputs(TIME)
    dy_BTHK, documents_BT = normal(2, TIME, 3, 8, seed=9), DOCUMENTS_BT[:2]

    def attend(q, k, v):
        return ATTENTIONS[path](q, k, v, 0.0, None, documents_BT)

    found = jax.jit(attend)(q, k, v)
    of_inputs = gradients(attend, dy_BTHK, q, k, v)
    for b, cuts in enumerate(CUTS[:2]):
        for start, end in zip((0, *cuts), (*cuts, TIME), strict=True):
            part = tuple(x[b : b + 1, start:end] for x in (q, k, v))
            heads_first = (x.swapaxes(1, 2) for x in part)
            causal = np.tri(end - start, dtype=bool)
            expected = reference_attention(*heads_first, causal).swapaxes(1, 2)
            np.testing.assert_allclose(found[b : b + 1, start:end], expected, atol=1e-5)
            alone = gradients(ATTENTIONS["xla"], dy_BTHK[b : b + 1, start:end], *part)
            for gradient, other in zip(of_inputs, alone, strict=True):
                np.testing.assert_allclose(gradient[b : b + 1, start:end], other, atol=1e-5)


def test_auto_takes_the_mask_along():
    q, *_ = causal_inputs(TIME)
    auto, blockwise = (
        str(
            jax.make_jaxpr(
                lambda q, path=path: ATTENTIONS[path](q, q, q, 0.0, None, DOCUMENTS_BT[:2])
            )(q)
        )
        for path in ("auto", "blockwise")
    )
    assert auto == blockwise


@pytest.mark.parametrize("path", PATHS)
def test_dropout_falls_on_the_weights_that_are_left(path):
    q, k, _ = causal_inputs(TIME, head_dim=TIME)
    one_hot = np.broadcast_to(np.eye(TIME, dtype=np.float32)[None, :, None], q.shape)
    weights = [
        np.asarray(ATTENTIONS[path](q, k, one_hot, 0.25, key, DOCUMENTS_BT[:2]))
        for key in (None, jax.random.key(0))
    ]
    seen, kept = (w > 0 for w in weights)
    inside = DOCUMENTS_BT[:2, :, None] == DOCUMENTS_BT[:2, None]
    allowed_BTS = inside & np.tri(TIME, dtype=bool)[None]
    np.testing.assert_array_equal(seen, np.broadcast_to(allowed_BTS[:, :, None], seen.shape))
    assert not kept[~seen].any()
    np.testing.assert_allclose(weights[1][kept], weights[0][kept] / 0.75, rtol=1e-5)
    assert abs(kept[seen].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / seen.sum())


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "xla"},
        {"attention": "blockwise"},
        pytest.param({"norm": "post", "final_norm": False}, marks=pytest.mark.slow),
        pytest.param({"remat": "full", "unroll": 1}, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_changing_a_document_changes_no_logit_of_the_others(fields):
    cfg, tokens_BT = dataclasses.replace(MODEL, **fields), some_tokens()
    before = logits_of(cfg, tokens_BT)
    for number in range(3):
        is_changed = number == DOCUMENTS_BT
        other = tokens_BT.copy()
        other[:, :TIME][is_changed & (tokens_BT[:, :TIME] != EOT)] = EOT + 1
        after = logits_of(cfg, other)
        np.testing.assert_array_equal(after[~is_changed], before[~is_changed])
        assert (after[is_changed] != before[is_changed]).any()


def test_without_the_mask_a_document_does_reach_the_next():
    """What the tests above would not notice if nothing ever reached anything."""
    tokens_BT, params = some_tokens(), parameters(MODEL)
    other = tokens_BT.copy()
    other[:, 0] = EOT + 1
    run = jax.jit(GPT(MODEL).apply)
    before, after = (run({"params": params}, t[:, :TIME]) for t in (tokens_BT, other))
    assert (before[:3, 298] != after[:3, 298]).any(-1).all()


@pytest.mark.slow
def test_no_gradient_crosses_a_boundary():
    tokens_BT, params = some_tokens(), parameters(MODEL)
    task = language_modelling(MODEL, 128, eot_id=EOT)

    def loss_of_the_last(wpe_TD, weights_BT):
        batch = {"tokens": jnp.asarray(tokens_BT), "weights": weights_BT}
        return task.loss({**params, "wpe": {"embedding": wpe_TD}}, batch, None)

    for row, (first, last) in enumerate(CUTS[:2]):
        weights_BT = np.zeros((len(CUTS), TIME), np.float32)
        weights_BT[row, last:] = 1
        gradient_TD = jax.jit(jax.grad(loss_of_the_last))(params["wpe"]["embedding"], weights_BT)
        np.testing.assert_array_equal(gradient_TD[:last], 0)
        assert (np.abs(gradient_TD[last:]).max(-1) > 0).all()
        assert first < last


def test_row_losses_are_those_of_the_documents_apart():
    """The loss of a packed row is the sum of its documents' own, at their own positions."""
    tokens_BT, params = some_tokens([(100, 200)]), parameters(MODEL)
    packed = language_modelling(MODEL, eot_id=EOT).row_losses
    weights_BT = np.ones((1, TIME), np.float32)
    together = jax.jit(packed)(params, {"tokens": tokens_BT, "weights": weights_BT})["loss"]
    apart = 0.0
    for start in (0, 100, 200):
        moved = {"embedding": np.roll(params["wpe"]["embedding"], -start, axis=0)}
        batch = {"tokens": tokens_BT[:, start : start + 101], "weights": weights_BT[:, :100]}
        task = language_modelling(MODEL)
        apart += jax.jit(task.row_losses)({**params, "wpe": moved}, batch)["loss"][0]
    assert float(together[0]) == pytest.approx(float(apart), rel=1e-6)


@pytest.mark.slow
def test_a_divided_model_keeps_documents_apart_too():
    tokens_BT, params = some_tokens(), parameters(MODEL)
    batch = {"tokens": tokens_BT, IS_REAL: np.ones(len(CUTS), np.float32)}
    losses = []
    for devices, split in ((1, ModelSharding()), (8, ModelSharding(fsdp=2, tensor=2))):
        mesh = make_mesh(devices, split)
        task = language_modelling(MODEL, 128, split, EOT)
        step = make_eval_step(task, mesh, param_specs(params, split))
        losses.append(float(step(params, put_rows(mesh, batch, axis=0))["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    batch = {"tokens": tokens_BT, "weights": np.ones((len(CUTS), TIME), np.float32)}
    plain = jax.jit(language_modelling(MODEL).row_losses)(params, batch)["loss"].sum()
    assert abs(float(plain) - losses[0]) > 1e-3 * losses[0]


def test_cudnn_refuses_documents():
    q, k, v = causal_inputs(8)
    with pytest.raises(ValueError, match="cannot keep documents apart: use pallas or blockwise"):
        ATTENTIONS["cudnn"](q, k, v, 0.0, None, DOCUMENTS_BT[:2, :8])


def test_a_tokenizer_without_a_boundary_of_its_own_is_refused():
    assert document_separator(ByteTokenizer()) == 256
    with pytest.raises(UserError, match="gpt1 ends them with <unk>"):
        document_separator(GPT1Tokenizer(["<unk>", "a</w>"], []))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A prepared directory of documents of 1 to 39 words."""
    directory = tmp_path_factory.mktemp("documents")
    texts = ["word " * (1 + i % 39) + str(i) for i in range(400)]
    (directory / "texts.txt").write_text("|".join(texts))
    data = DataConfig(
        path=str(directory / "out"),
        inputs=(str(directory / "texts.txt"),),
        doc_separator="|",
        val_fraction=0.2,
    )
    return prepare_shards(data, find_inputs(data))


@pytest.mark.slow
def test_a_run_trains_and_validates_inside_documents(documents):
    """Its losses are those of the task that keeps them apart, and not those without."""
    fields = {"model.n_ctx": 128, "train.batch_tokens": 1024, "train.eval_every_steps": 1}
    mixed, made = (
        Setup(tiny(documents, {**fields, "data.document_mask": mask})) for mask in (False, True)
    )
    assert "attn     xla, inside documents (no NVIDIA GPU" in announced(made)
    assert "inside documents" not in announced(mixed)
    losses, state = trained(made, 2)
    assert losses[0] != trained(mixed, 2)[0][0]

    found = evaluate_parts(
        lambda b: made.program.eval_step(state.params, b), made.validation_parts()
    ).loss
    params, model = jax.device_get(state.params), made.program.config.model
    for eot_id, is_it in ((None, False), (made.tokenizer.eot_id, True)):
        row_losses = jax.jit(language_modelling(model, eot_id=eot_id).row_losses)
        batches = jax.device_get([b for part in made.validation_parts() for b in part.batches])
        for batch in batches:
            real_B1 = batch.pop(IS_REAL)[:, None]
            batch["weights"] = np.broadcast_to(real_B1, batch["tokens"][:, 1:].shape)
        total = sum(float(row_losses(params, batch)["loss"].sum()) for batch in batches)
        expected = total / sum(float(batch["weights"].sum()) for batch in batches)
        assert (found == pytest.approx(expected, rel=1e-5)) == is_it

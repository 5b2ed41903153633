"""The network as a whole: causal, one scan over its layers, inert padding, switches that work."""

import dataclasses
import itertools
import re
from dataclasses import replace
from functools import cache, partial
from math import comb
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.gpt import GPT, PADDING_LOGIT, init_params, parameter_shapes
from gptjax.model.layers import Block
from gptjax.model.size import parameter_count
from gptjax.training.objectives import language_modelling

BASE = ModelConfig(2, 2, 16, n_ctx=12, n_vocab=200, dtype="float32", resid_pdrop=0.1)
ORDERS = [{"norm": "pre"}, {"norm": "post", "final_norm": False}]
BIASES = {"attn/c_proj", "mlp/c_fc", "mlp/c_proj", "ln_1", "ln_2"}
# every switch, another value than BASE has, and the leaves that come or go with it
SWITCHES = {
    "norm": ("post", set()),
    "final_norm": (False, {"ln_f/scale", "ln_f/bias"}),
    "scale_residual_init": (False, set()),
    "qkv_bias": (False, {"h/attn/c_attn/bias"}),
    "bias": (False, {"ln_f/bias", *(f"h/{module}/bias" for module in BIASES)}),
    "tied_head": (False, {"lm_head"}),
    "activation": ("gelu_erf", set()),
    "embd_pdrop": (0.3, set()),
    "attn_pdrop": (0.3, set()),
    "resid_pdrop": (0.3, set()),
    "dtype": ("bfloat16", set()),
    "unroll": (2, set()),
    "attention": ("blockwise", set()),
    "remat": ("full", set()),
}
WIDE = ModelConfig(4, 2, 64, 64, 512, tied_head=False)  # enough scalars for statistics


@cache
def perturbed(cfg):
    """Random parameters without a single 0 or 1 that would hide a mistake."""
    leaves, structure = jax.tree.flatten(parameter_shapes(cfg))
    is_scale = [name.endswith("scale") for name in named_leaves(parameter_shapes(cfg))]
    rng = np.random.default_rng(1)
    noise = [0.2 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, map(np.add, noise, np.float32(is_scale)))


@cache
def drawn(cfg):
    return jax.tree.map(np.asarray, jax.jit(partial(init_params, cfg))(jax.random.key(0)))


def forward(cfg, params, tokens_BT):
    return GPT(cfg).apply({"params": params}, tokens_BT)


def training_forward(cfg, params, tokens_BT, key):
    return GPT(cfg).apply({"params": params}, tokens_BT, train=True, rngs={"dropout": key})


def backward(cfg, params, tokens_BT):
    batch = {"tokens": tokens_BT, "weights": jnp.ones((len(tokens_BT), tokens_BT.shape[1] - 1))}
    return jax.grad(lambda p: language_modelling(cfg).loss(p, batch, None))(params)


def as_numpy(function):
    """Jit, and hand back NumPy arrays, on which comparing compiles nothing."""
    compiled = jax.jit(function, static_argnums=0)
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))


logits_of, training_logits_of, gradients_of = map(as_numpy, (forward, training_forward, backward))


def some_tokens(batch=2, time=12):
    return np.random.default_rng(2).integers(0, BASE.n_vocab, (batch, time), dtype=np.int32)


@pytest.mark.parametrize("order", ORDERS)
def test_logits_depend_on_all_of_the_past_and_nothing_of_the_future(order):
    cfg = replace(BASE, n_layer=1, **order)  # a second layer would fill gaps in the first one's
    params, tokens_BT = perturbed(cfg), some_tokens(1)
    probe_V = np.random.default_rng(3).standard_normal(BASE.n_vocab, np.float32)

    @jax.jit
    @jax.jacobian
    def by_position(embedding_SD):
        logits_BTV = forward(cfg, {**params, "wpe": {"embedding": embedding_SD}}, tokens_BT)
        return logits_BTV[0, :, : BASE.n_vocab] @ probe_V

    jacobian_TSD = np.asarray(by_position(params["wpe"]["embedding"]))
    past_TS = np.tri(12, dtype=bool)
    assert (jacobian_TSD[~past_TS] == 0).all()
    assert (np.abs(jacobian_TSD[past_TS]).max(-1) > 1e-4).all()


def test_rows_of_a_batch_do_not_see_each_other():
    tokens_BT = some_tokens()
    others_BT = np.where([[True], [False]], (tokens_BT + 1) % BASE.n_vocab, tokens_BT)
    before, after = (logits_of(BASE, perturbed(BASE), t) for t in (tokens_BT, others_BT))
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.slow
def test_unrolling_the_layers_changes_no_number():
    one, all_layers = BASE, replace(BASE, unroll=BASE.n_layer)
    logits = [logits_of(cfg, perturbed(BASE), some_tokens()) for cfg in (one, all_layers)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    rolled, unrolled = (
        named_leaves(gradients_of(cfg, perturbed(BASE), some_tokens())) for cfg in (one, all_layers)
    )
    for name, grad in rolled.items():
        atol = 1e-5 * abs(grad).max()
        np.testing.assert_allclose(unrolled[name], grad, rtol=1e-4, atol=atol, err_msg=name)


def test_more_unrolling_than_layers_is_all_of_them():
    assert program(replace(BASE, unroll=100)) == program(replace(BASE, unroll=BASE.n_layer))


@pytest.mark.parametrize("order", ORDERS)
def test_the_scan_is_the_blocks_one_after_the_other(order):
    cfg = replace(BASE, **order)
    params, tokens_BT = perturbed(cfg), some_tokens()
    x_BTD = params["wte"]["embedding"][tokens_BT] + params["wpe"]["embedding"][None, :12]
    for layer in range(cfg.n_layer):
        block = jax.tree.map(itemgetter(layer), params["h"])
        x_BTD = Block(cfg).apply({"params": block}, x_BTD, False)
    if cfg.final_norm:
        x_BTD = ops.layer_norm(x_BTD, **{f"{k}_D": v for k, v in params["ln_f"].items()})
    expected = x_BTD @ params["wte"]["embedding"][: cfg.n_vocab].T
    logits_BTV = logits_of(cfg, params, tokens_BT)[..., : cfg.n_vocab]
    np.testing.assert_allclose(logits_BTV, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_the_vocabulary_are_inert(tied):
    cfg = replace(BASE, tied_head=tied)
    params, tokens_BT = perturbed(cfg), some_tokens()
    tables = ["wte/embedding"] if tied else ["wte/embedding", "lm_head"]
    logits_BTV = logits_of(cfg, params, tokens_BT)
    assert logits_BTV.shape == (2, 12, 256)
    assert (logits_BTV[..., 200:] == PADDING_LOGIT).all()
    assert PADDING_LOGIT == -1e9
    assert abs(logits_BTV[..., :200]).max() < 1e3

    p_BTV = np.asarray(jax.nn.softmax(logits_BTV))
    assert (p_BTV[..., 200:] == 0).all()
    expected = jax.nn.softmax(logits_BTV[..., :200])
    np.testing.assert_allclose(p_BTV[..., :200], expected, rtol=1e-6)

    gradients = named_leaves(gradients_of(cfg, params, tokens_BT))
    assert (abs(gradients[tables[-1]][:200]).max(-1) > 0).all()
    others = jax.tree.map(np.copy, params)
    for table in tables:
        assert (gradients[table][200:] == 0).all()
        named_leaves(others)[table][200:] = 1e3
    np.testing.assert_array_equal(logits_of(cfg, others, tokens_BT), logits_BTV)


def test_a_vocabulary_of_whole_tiles_has_no_padding():
    cfg = replace(BASE, n_vocab=256)
    assert abs(logits_of(cfg, perturbed(cfg), some_tokens())).max() < 1e3


def test_initial_parameters_have_gpt2s_statistics():
    for name, leaf in named_leaves(drawn(WIDE)).items():
        assert leaf.dtype == jnp.float32
        if name.endswith(("bias", "scale")):
            np.testing.assert_array_equal(leaf, float(name.endswith("scale")), err_msg=name)
            continue
        std = 0.02 / 8**0.5 if name.endswith("c_proj/kernel") else 0.02
        layers = np.asarray(leaf if name.startswith("h/") else leaf[None])
        for layer in layers:
            n, z = layer.size, layer / std
            assert abs(z.mean()) < 5 / n**0.5, name
            assert abs(z.std() - 1) < 5 / (2 * n) ** 0.5, name
            assert abs((abs(z) < 1).mean() - 0.6827) < 5 * (0.6827 * 0.3173 / n) ** 0.5, name
        for one, other in itertools.combinations(layers, 2):
            assert (one != other).mean() > 0.99, name


def test_scaling_the_residual_init_narrows_the_residual_projections_alone():
    plain = named_leaves(drawn(replace(WIDE, scale_residual_init=False)))
    for name, leaf in named_leaves(drawn(WIDE)).items():
        factor = 8**0.5 if name.endswith("c_proj/kernel") else 1.0
        np.testing.assert_allclose(leaf * factor, plain[name], rtol=1e-6, err_msg=name)


def test_every_field_of_the_model_is_a_size_or_a_switch_tested_here():
    sizes = {"n_layer", "n_head", "n_embd", "n_ctx", "n_vocab"}
    of_the_step = {"float32_matmul"}
    of_finetuning = {"n_special", "n_classes", "clf_pdrop"} | {
        f"lora_{name}" for name in ("rank", "alpha", "dropout", "targets")
    }
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    assert fields == sizes | of_the_step | of_finetuning | SWITCHES.keys()


def text(function, cfg, *args):
    """The program that `function` traces to, without addresses."""
    jaxpr = jax.make_jaxpr(partial(function, cfg))(*args)
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


@cache
def program(cfg):
    """Text of drawing the parameters and of a training-mode forward pass."""
    key = jax.random.key(0)
    training = text(training_forward, cfg, parameter_shapes(cfg), some_tokens(), key)
    return text(init_params, cfg, key) + training


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_the_program_and_exactly_its_own_leaves(switch):
    value, leaves = SWITCHES[switch]
    cfg = replace(BASE, **{switch: value})
    assert program(cfg) != program(BASE)
    before, after = (named_leaves(parameter_shapes(c)) for c in (BASE, cfg))
    assert before.keys() ^ after.keys() == leaves
    assert all(before[name].shape == after[name].shape for name in before.keys() & after.keys())


@pytest.mark.parametrize(
    "switch", ["norm", "final_norm", "qkv_bias", "bias", "tied_head", "activation", "dtype"]
)
def test_switches_of_the_arithmetic_change_the_logits(switch):
    cfg = replace(BASE, **{switch: SWITCHES[switch][0]})
    both = perturbed(BASE) | {"lm_head": perturbed(replace(BASE, tied_head=False))["lm_head"]}
    before, after = (logits_of(c, both, some_tokens())[..., :200] for c in (BASE, cfg))
    assert abs(before - after).max() > 1e-3


@pytest.mark.parametrize("site", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_each_dropout_site_alone_acts_in_training_and_never_in_evaluation(site):
    off = replace(BASE, resid_pdrop=0.0)
    on, params, tokens_BT = replace(off, **{site: 0.3}), perturbed(BASE), some_tokens()
    evaluation = text(forward, off, params, tokens_BT)
    assert text(forward, on, params, tokens_BT) == evaluation
    trained = [text(training_forward, c, params, tokens_BT, jax.random.key(0)) for c in (on, off)]
    assert ["random_bits" in program for program in trained] == [True, False]

    draws = [training_logits_of(on, params, tokens_BT, jax.random.key(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert abs(draws[0] - draws[2]).max() > 1e-2
    assert abs(draws[0] - logits_of(BASE, params, tokens_BT)).max() > 1e-2


@pytest.mark.parametrize(
    ("site", "masks"), [("embd_pdrop", 1), ("attn_pdrop", 3), ("resid_pdrop", 6)]
)
def test_every_dropout_of_every_layer_draws_its_own_mask(site, masks):
    """In a network whose every summand is 1, logits count the summands that were kept."""
    cfg = ModelConfig(3, 128, 128, 1, 128, final_norm=False, tied_head=False, **{site: 0.5})
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameter_shapes(cfg))
    params["lm_head"] += np.eye(128, dtype=np.float32)
    if site == "embd_pdrop":
        params["wpe"]["embedding"] += 1
    elif site == "attn_pdrop":
        params["h"]["attn"]["c_attn"]["bias"][:, -128:] += 1
        params["h"]["attn"]["c_proj"]["kernel"] += np.eye(128, dtype=np.float32)
    else:
        params["h"]["attn"]["c_proj"]["bias"] += 1
        params["h"]["mlp"]["c_proj"]["bias"] += 1
    tokens_BT = np.zeros((128, 1), int)
    kept_BTD = training_logits_of(cfg, params, tokens_BT, jax.random.key(0)) / 2
    for count in range(masks + 1):
        p = comb(masks, count) / 2**masks
        assert abs((kept_BTD == count).mean() - p) < 5 * (p * (1 - p) / kept_BTD.size) ** 0.5


def test_bfloat16_stays_close_to_float32_over_float32_parameters():
    cfg, tokens_BT = replace(BASE, dtype="bfloat16"), some_tokens()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameter_shapes(cfg)))
    params = perturbed(BASE)
    logits_BTV, exact_BTV = (logits_of(c, params, tokens_BT) for c in (cfg, BASE))
    assert logits_BTV.dtype == jnp.float32
    error = (logits_BTV - exact_BTV)[..., :200]
    assert error.std() < 0.02 * exact_BTV[..., :200].std()

    ours, theirs = (named_leaves(gradients_of(c, params, tokens_BT)) for c in (cfg, BASE))
    for name, grad in ours.items():
        assert grad.dtype == jnp.float32
        error = np.linalg.norm(grad - theirs[name]) / np.linalg.norm(theirs[name])
        assert error < 0.04, name


@pytest.mark.parametrize(("dtype", "name"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_every_matrix_product_reads_the_compute_type(dtype, name):
    cfg = replace(BASE, dtype=dtype, tied_head=False)
    lowered = jax.jit(partial(forward, cfg)).lower(parameter_shapes(cfg), some_tokens()).as_text()
    operands = re.findall(r"dot_general .* : \((tensor<\S+>), (tensor<\S+>)\)", lowered)
    assert len(operands) == 7  # c_attn, scores, values, c_proj, c_fc, c_proj; lm_head
    assert all(operand.endswith(f"x{name}>") for pair in operands for operand in pair)


def test_more_tokens_than_the_context_are_refused():
    params = perturbed(BASE)
    assert logits_of(BASE, params, some_tokens()).shape == (2, 12, 256)
    with pytest.raises(ValueError, match="13 tokens do not fit the context of 12"):
        logits_of(BASE, params, some_tokens(time=13))


def test_parameter_shapes_are_those_of_real_parameters():
    real = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn(WIDE))
    assert parameter_shapes(WIDE) == real


def test_parameter_shapes_allocate_nothing():
    before = len(jax.live_arrays())
    leaves = jax.tree.leaves(parameter_shapes(BASE))
    assert all(type(leaf) is jax.ShapeDtypeStruct for leaf in leaves)
    assert len(jax.live_arrays()) <= before
    three_petabytes = replace(BASE, n_layer=1000, n_embd=2**18)
    assert parameter_count(three_petabytes) > 8e14

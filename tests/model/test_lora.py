"""Adapters: merging them changes no logit, and their number is the one that PEFT counts."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.lora import adapters_of, merged, with_adapters
from gptjax.model.places import leaves
from gptjax.model.trainable import trainable, trained_count

ALL = ("c_attn", "c_proj", "c_fc")
CFG = ModelConfig(
    n_layer=2, n_head=2, n_embd=16, n_ctx=12, n_vocab=50, dtype="float32",
    lora_rank=3, lora_alpha=7.0, lora_targets=ALL,
)  # fmt: skip
GPT2 = ModelConfig(n_vocab=50257, lora_rank=16, lora_targets=ALL)


def drawn(cfg: ModelConfig, seed: int = 0) -> Any:
    """Parameters of which none is zero, second matrices of adapters among them."""
    chance = np.random.default_rng(seed)
    shapes = named_leaves(parameter_shapes(cfg))
    return as_tree({n: np.float32(chance.normal(0, 0.2, x.shape)) for n, x in shapes.items()})


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_merged_adapters_give_the_same_logits(norm):
    cfg = dataclasses.replace(CFG, norm=norm, final_norm=norm == "pre")
    params = drawn(cfg)
    tokens_BT = np.random.default_rng(1).integers(0, 50, (2, 12))
    whole, plain = merged(params, cfg)
    logits = GPT(cfg).apply({"params": params}, tokens_BT)
    np.testing.assert_allclose(GPT(plain).apply({"params": whole}, tokens_BT), logits, atol=1e-5)
    without = as_tree({n: x for n, x in named_leaves(params).items() if "/lora_" not in n})
    base = GPT(plain).apply({"params": without}, tokens_BT)
    assert np.abs(np.asarray(base) - np.asarray(logits))[..., :50].max() > 0.1


def test_a_kernel_gains_the_product_and_nothing_else_changes():
    params = drawn(CFG)
    whole, named = named_leaves(merged(params, CFG)[0]), named_leaves(params)
    a, b = (named[f"h/mlp/c_fc/lora_{x}"].astype(np.float64) for x in "AB")
    expected = named["h/mlp/c_fc/kernel"] + a @ b * (7 / 3)
    np.testing.assert_allclose(whole["h/mlp/c_fc/kernel"], expected, rtol=1e-5, atol=1e-6)
    plain = dataclasses.replace(CFG, lora_rank=0)
    assert sorted(whole) == sorted(leaf.name for leaf in leaves(plain))
    assert whole["h/mlp/c_fc/bias"] is named["h/mlp/c_fc/bias"]


def test_a_tree_is_its_adapters_and_the_rest():
    cfg = dataclasses.replace(CFG, n_classes=2)
    params = drawn(cfg)
    own = named_leaves(adapters_of(params, cfg))
    assert sorted(own)[:2] == ["clf/bias", "clf/kernel"]
    assert all("/lora_" in name for name in sorted(own)[2:])
    assert len(own) == 2 + 2 * 4
    base = as_tree({n: x for n, x in named_leaves(params).items() if n not in own})
    assert jax.tree.structure(with_adapters(base, as_tree(own))) == jax.tree.structure(params)


@pytest.mark.slow
def test_gpt2_has_as_many_trained_parameters_as_peft_counts():
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    assert trained_count(GPT2, trainable(GPT2)) == 2_359_296
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        lora = peft.LoraConfig(r=16, target_modules=list(ALL), fan_in_fan_out=True)
        counted, everything = peft.get_peft_model(model, lora).get_nb_trainable_parameters()
    assert counted == 2_359_296
    assert everything == sum(leaf.elements for leaf in leaves(GPT2)) - 47 * 768  # our padding


@pytest.mark.parametrize("targets", [("q_proj",), (), ("c_attn", "wte")])
def test_targets_that_name_no_matrix_are_refused_with_those_there_are(targets):
    cfg = dataclasses.replace(CFG, lora_targets=targets)
    with pytest.raises(UserError, match=r"attn/c_attn, attn/c_proj, mlp/c_fc, mlp/c_proj"):
        trainable(cfg)

"""What is trained, by name and by block: every number belongs to one part, and comes back."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.config import ModelConfig
from gptjax.model.freezing import EVERYTHING, trained_leaves
from gptjax.model.gpt import init_params
from gptjax.model.places import leaves
from gptjax.model.size import parameter_count
from gptjax.model.trainable import trainable, trained_count

CFG = ModelConfig(n_layer=3, n_head=2, n_embd=8, n_ctx=6, n_vocab=128, n_classes=2, dtype="float32")
CASES = [
    ((), None), (("*",), 1), (("h/*", "ln_f/*", "clf/*"), 1), (("*/bias",), 2), (("clf/*",), None),
    (("wte/*", "h/mlp/*"), 2),
]  # fmt: skip


@pytest.mark.parametrize(("patterns", "blocks"), CASES)
def test_every_number_is_in_one_part_and_comes_back(patterns, blocks):
    params = init_params(CFG, jax.random.key(0))
    chosen = trained_leaves(CFG, patterns, blocks)
    trained, frozen = chosen.split(params)
    sizes = [sum(x.size for x in jax.tree.leaves(part)) for part in (trained, frozen)]
    assert sum(sizes) == parameter_count(CFG)
    assert sizes[0] == trained_count(CFG, trainable(CFG, patterns, blocks))
    changed = chosen.updated(params, jax.tree.map(lambda x: x + 1, trained))
    for name, x in named_leaves(changed).items():
        rows = np.zeros(len(x), bool)
        if chosen.everything or name in chosen.names:
            rows[chosen.first_block if name.startswith("h/") else 0 :] = True
        before = np.asarray(named_leaves(params)[name])
        np.testing.assert_array_equal(np.asarray(x)[~rows], before[~rows], err_msg=name)
        np.testing.assert_array_equal(np.asarray(x)[rows], before[rows] + 1, err_msg=name)


def test_the_table_says_what_is_trained():
    chosen = trainable(CFG, ("h/mlp/*", "ln_f/*"), 2)
    words = {leaf.name: chosen.in_words(leaf) for leaf in leaves(CFG)}
    assert words["h/mlp/c_fc/kernel"] == "blocks 1 to 2"
    assert words["ln_f/scale"] == "yes"
    assert words["h/attn/c_attn/kernel"] == words["wte/embedding"] == "no"
    assert set(trainable(CFG).names) == words.keys()
    last = trainable(CFG, (), 1)
    assert last.in_words(leaves(CFG)[2]) == "block 2"


def test_nothing_is_split_where_everything_is_trained():
    assert trained_leaves(CFG) is EVERYTHING
    assert trained_leaves(CFG, ("*",), 3) is EVERYTHING


def test_with_adapters_these_are_trained_and_the_head():
    cfg = dataclasses.replace(CFG, lora_rank=2, lora_targets=("mlp/*",))
    chosen = trained_leaves(cfg)
    assert chosen.are_adapters
    assert sorted(chosen.names) == [
        "clf/bias", "clf/kernel", "h/mlp/c_fc/lora_A", "h/mlp/c_fc/lora_B",
        "h/mlp/c_proj/lora_A", "h/mlp/c_proj/lora_B",
    ]  # fmt: skip


@pytest.mark.parametrize("blocks", [0, 4])
def test_more_blocks_than_there_are_are_refused(blocks):
    with pytest.raises(UserError, match="1 to 3, the blocks of this model"):
        trainable(CFG, (), blocks)


def test_a_pattern_that_names_nothing_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"optim.trainable ln_g/\* names no parameter.*ln_f/scale"):
        trainable(CFG, ("h/*", "ln_g/*"))

"""The parameters of a model in the shape of another: cut, extended, and with new leaves drawn."""

from jax import Array

from gptjax.base.tree import Tree, as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import init_params
from gptjax.model.lora import merged, with_adapters

TABLES = ("wte/embedding", "wpe/embedding", "lm_head")
"""Leaves with a row for each token or position; others are taken whole or drawn."""
OF_TOKENS = ("wte/embedding", "lm_head")


def refitted(theirs: ModelConfig, cfg: ModelConfig, params: Tree, key: Array) -> Tree:
    """The parameters of `cfg`: those of a model `theirs`, and new ones where it has none.

    Tables of positions and tokens are cut, or extended by new rows after the last. The rows of
    special tokens that `theirs` does not have are new as well: there they only pad the vocabulary.
    """
    found, new = named_leaves(params), named_leaves(init_params(cfg, key))
    special = slice((cfg.n_vocab or 0) + theirs.n_special, (cfg.n_vocab or 0) + cfg.n_special)
    for name in new.keys() & found.keys():
        drawn, theirs_x = new[name], found[name]
        if drawn.shape == theirs_x.shape:
            new[name] = theirs_x
        elif name in TABLES:
            rows = min(len(drawn), len(theirs_x))
            new[name] = drawn.at[:rows].set(theirs_x[:rows])
        if name in OF_TOKENS and special.stop > special.start:
            new[name] = new[name].at[special].set(drawn[special])
    return as_tree(new)


def refitted_and_merged(
    theirs: ModelConfig, cfg: ModelConfig, base: Tree, adapters: Tree, key: Array
) -> Tree:
    """The parameters of a model with adapters `cfg`, merged, from its base `theirs`."""
    return merged(with_adapters(refitted(theirs, cfg, base, key), adapters), cfg)[0]

"""Parameters under Hugging Face's names as ours and back, by the table of leaves: no transposes."""

from collections.abc import Mapping

import numpy as np

from gptjax.config import ModelConfig
from gptjax.model.places import leaves


def our_leaves(theirs: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Our leaves by name: layers stacked, the vocabulary padded with rows of zeros."""
    ours, used = {}, set()
    for leaf in leaves(cfg):
        names = [leaf.huggingface.format(i) for i in range(cfg.n_layer)]
        layers = [theirs[name] for name in names]
        array = np.stack(layers) if leaf.name.startswith("h/") else layers[0]
        ours[leaf.name] = np.pad(array, [(0, leaf.padding)] + [(0, 0)] * (array.ndim - 1))
        used |= set(names)
    assert used == set(theirs), "names that one side has and the other has not"
    return ours


def their_arrays(ours: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """The way back: one array a layer, without padding."""
    theirs = {}
    for leaf in leaves(cfg):
        array = ours[leaf.name][: leaf.published_shape[0]]
        if leaf.name.startswith("h/"):
            theirs |= {leaf.huggingface.format(i): layer for i, layer in enumerate(array)}
        else:
            theirs[leaf.huggingface] = array
    return theirs


def our_tree(theirs: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict:
    """Our nested parameter tree."""
    tree: dict = {}
    for name, array in our_leaves(theirs, cfg).items():
        *modules, leaf = name.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = array
    return tree

"""GPT-1 and GPT-2 parameters under Hugging Face's names, as our tree: a rename and a stack."""

import re
from collections.abc import Mapping

import numpy as np

TABLES = {"tokens_embed": "wte", "positions_embed": "wpe"}  # GPT-1's names for GPT-2's tables


def our_name(name: str) -> tuple[str, int | None]:
    """`transformer.h.3.ln_1.weight` is layer 3 of `h/ln_1/scale`; no layer for the rest."""
    module, kind = name.removeprefix("transformer.").rsplit(".", 1)
    layer = re.match(r"h\.(\d+)\.", module)
    module = TABLES.get(module, re.sub(r"^h\.\d+", "h", module).replace(".", "/"))
    if kind == "weight":
        is_norm = module.rsplit("/")[-1].startswith("ln_")
        kind = "embedding" if module in ("wte", "wpe") else "scale" if is_norm else "kernel"
    return f"{module}/{kind}", int(layer[1]) if layer else None


def our_leaves(theirs: Mapping[str, np.ndarray], padded_vocab: int) -> dict[str, np.ndarray]:
    """Our leaves by name: layers stacked, the token table padded with rows of zeros."""
    ours: dict = {}
    for theirs_name, array in theirs.items():
        name, layer = our_name(theirs_name)
        if layer is None:
            ours[name] = array
        else:
            ours.setdefault(name, {})[layer] = array
    for name, value in ours.items():
        if isinstance(value, dict):
            ours[name] = np.stack([value[layer] for layer in range(len(value))])
    padding = padded_vocab - len(ours["wte/embedding"])
    ours["wte/embedding"] = np.pad(ours["wte/embedding"], ((0, padding), (0, 0)))
    return ours


def our_tree(theirs: Mapping[str, np.ndarray], padded_vocab: int) -> dict:
    """Our nested parameter tree."""
    tree: dict = {}
    for name, array in our_leaves(theirs, padded_vocab).items():
        *modules, leaf = name.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = array
    return tree

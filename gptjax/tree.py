"""Parameter trees by leaf name: names such as `h/attn/c_attn/kernel`, masks, counts.

Masks go by name and never by rank, because the layer stack gives every leaf a leading axis: a
stacked bias has two dimensions.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Sharding

Tree = Any


def leaf_names(tree: Tree) -> Tree:
    """Replace every leaf by its name, its keys joined with slashes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` under their names, in tree order."""
    return dict(zip(jax.tree.leaves(leaf_names(tree)), jax.tree.leaves(tree), strict=True))


def mask_by_name(tree: Tree, yes: Sequence[str], no: Sequence[str]) -> Tree:
    """True where the leaf's name matches a pattern of `yes`, False where one of `no`.

    Patterns are regular expressions that must match the whole name. Raises `ValueError` unless
    exactly one side matches each leaf, so that a new parameter cannot go unnoticed.
    """

    def decide(name: str) -> bool:
        is_yes = any(re.fullmatch(pattern, name) for pattern in yes)
        is_no = any(re.fullmatch(pattern, name) for pattern in no)
        if is_yes == is_no:
            found = "both sides" if is_yes else "no pattern"
            raise ValueError(f"parameter {name} is matched by {found} of the mask")
        return is_yes

    return jax.tree.map(decide, leaf_names(tree))


def placed(tree: Tree, shardings: Tree) -> Tree:
    """The same shapes and types, to be placed as `shardings` says: one for all, or one a leaf."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings
    )


def count(tree: Tree) -> int:
    """Number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

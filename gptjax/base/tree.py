"""Parameter trees by leaf name: names such as `h/attn/c_attn/kernel`, shapes, counts.

Rules that differ between leaves go by name and never by rank: stacking layers gives every leaf a
leading axis, so a stacked bias has two dimensions.
"""

from collections.abc import Mapping
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
    """The leaves of `tree` under their names, in tree order.

    >>> named_leaves({"h": {"ln_1": {"scale": 1}}})
    {'h/ln_1/scale': 1}
    """
    return dict(zip(jax.tree.leaves(leaf_names(tree)), jax.tree.leaves(tree), strict=True))


def as_tree(named: Mapping[str, Any]) -> dict[str, Any]:
    """The nested tree of leaves under their names, the inverse of `named_leaves`.

    >>> as_tree({"h/ln_1/scale": 1, "lm_head": 2})
    {'h': {'ln_1': {'scale': 1}}, 'lm_head': 2}
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *modules, last = name.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[last] = leaf
    return tree


def abstract_tree(tree: Tree, shardings: Tree) -> Tree:
    """Shapes and types of a tree, with `shardings`: one for all leaves, or a tree of them."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings
    )


def count_elements(tree: Tree) -> int:
    """Number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Tree) -> int:
    """Bytes of all leaves, arrays or shapes with types."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

"""Parameters go by name: names are the paths, counts add up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.base.tree import abstract_tree, count_elements, leaf_names, named_leaves

TREE = {
    "wte": {"embedding": np.zeros((5, 3), np.float32)},
    "h": {
        "attn": {"kernel": np.ones((2, 3, 4), np.float16), "bias": np.zeros((2, 4), np.int32)},
        "ln": {"scale": np.ones((2, 3), np.float32)},
    },
    "step": np.int32(7),
}
NAMES = ["h/attn/bias", "h/attn/kernel", "h/ln/scale", "step", "wte/embedding"]


def test_a_name_is_the_path_of_its_leaf():
    assert leaf_names(TREE) == {
        "wte": {"embedding": "wte/embedding"},
        "h": {
            "attn": {"kernel": "h/attn/kernel", "bias": "h/attn/bias"},
            "ln": {"scale": "h/ln/scale"},
        },
        "step": "step",
    }


def test_sequences_are_named_by_their_index():
    assert leaf_names([1, (2, {"a": 3})]) == ["0", ("1/0", {"a": "1/1/a"})]


def test_named_leaves_are_the_very_leaves_in_tree_order():
    leaves = named_leaves(TREE)
    assert list(leaves) == NAMES
    assert all(a is b for a, b in zip(leaves.values(), jax.tree.leaves(TREE), strict=True))
    assert leaves["h/ln/scale"] is TREE["h"]["ln"]["scale"]


def test_the_count_is_the_number_of_scalars():
    assert count_elements(TREE) == 5 * 3 + 2 * 3 * 4 + 2 * 4 + 2 * 3 + 1
    assert count_elements(
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    ) == count_elements(TREE)
    assert count_elements({}) == 0


def test_placed_keeps_shapes_and_types_and_allocates_nothing():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = abstract_tree(TREE, sharding)
    assert jax.tree.structure(shapes) == jax.tree.structure(TREE)
    for leaf, wanted in zip(jax.tree.leaves(shapes), jax.tree.leaves(TREE), strict=True):
        assert type(leaf) is jax.ShapeDtypeStruct
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, sharding)

"""Parameters go by name: names are the paths, a mask decides every leaf once, counts add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.tree import count, leaf_names, mask_by_name, named_leaves, placed

TREE = {
    "wte": {"embedding": np.zeros((5, 3), np.float32)},
    "h": {
        "attn": {"kernel": np.ones((2, 3, 4), np.float16), "bias": np.zeros((2, 4), np.int32)},
        "ln": {"scale": np.ones((2, 3), np.float32)},
    },
    "step": np.int32(7),
}
NAMES = ["h/attn/bias", "h/attn/kernel", "h/ln/scale", "step", "wte/embedding"]
YES, NO = [r".*/kernel", r".*/embedding"], [r".*/bias", r".*/scale", "step"]


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


def test_a_mask_has_the_shape_of_its_tree_and_goes_by_name():
    mask = mask_by_name(TREE, YES, NO)
    assert mask == {
        "wte": {"embedding": True},
        "h": {"attn": {"kernel": True, "bias": False}, "ln": {"scale": False}},
        "step": False,
    }
    swapped = mask_by_name(TREE, NO, YES)
    assert swapped == jax.tree.map(lambda decided: not decided, mask)


def test_a_mask_works_on_shapes_alone():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    assert mask_by_name(shapes, YES, NO) == mask_by_name(TREE, YES, NO)


@pytest.mark.parametrize(
    ("yes", "no", "name", "found"),
    [
        (YES, NO[:-1], "step", "no pattern"),
        (YES[1:], NO, "h/attn/kernel", "no pattern"),
        ([], [], "h/attn/bias", "no pattern"),
        (YES, [*NO, "h/attn/.*"], "h/attn/kernel", "both sides"),
        ([*YES, ".*"], NO, "h/attn/bias", "both sides"),
        ([r"kernel", YES[1]], NO, "h/attn/kernel", "no pattern"),
        ([r".*/kern", YES[1]], NO, "h/attn/kernel", "no pattern"),
    ],
)
def test_a_leaf_that_no_side_or_both_sides_match_is_named(yes, no, name, found):
    with pytest.raises(ValueError, match=f"parameter {name} is matched by {found}"):
        mask_by_name(TREE, yes, no)


def test_two_patterns_of_one_side_may_match_a_leaf():
    mask = mask_by_name(TREE, [*YES, r"h/attn/kernel"], [*NO, r"h/ln/.*"])
    assert mask == mask_by_name(TREE, YES, NO)


def test_the_count_is_the_number_of_scalars():
    assert count(TREE) == 5 * 3 + 2 * 3 * 4 + 2 * 4 + 2 * 3 + 1
    assert count(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))) == count(TREE)
    assert count({}) == 0


def test_placed_keeps_shapes_and_types_and_allocates_nothing():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = placed(TREE, sharding)
    assert jax.tree.structure(shapes) == jax.tree.structure(TREE)
    for leaf, wanted in zip(jax.tree.leaves(shapes), jax.tree.leaves(TREE), strict=True):
        assert type(leaf) is jax.ShapeDtypeStruct
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, sharding)

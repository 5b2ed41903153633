"""A digest depends on every bit of every element and its place, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.runs.digests import DIGESTS, difference, tree_digests

TREE = {"a": np.arange(96, dtype=np.float32).reshape(8, 12), "b": {"c": np.ones(5, np.int32)}}


def by_hand(x: np.ndarray, crc: int) -> int:
    """The definition, one element after the other."""
    total = 0
    for place, bits in enumerate(x.reshape(-1).view(f"uint{8 * x.itemsize}").tolist()):
        mixed = (bits + (place + crc) * 0x9E3779B1) % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        total += (mixed ^ mixed >> 13) * 0xC2B2AE35
    return total % 2**32


def test_it_is_what_its_definition_says():
    # crc32 of the name "a"
    assert tree_digests({"t": {"a": TREE["a"]}}) == {"t": by_hand(TREE["a"], 0xE8B7BE43)}
    wide = np.full((3, 4, 2), -1.5, jnp.bfloat16)
    assert tree_digests({"t": {"a": wide}}) == {"t": by_hand(wide, 0xE8B7BE43)}


@pytest.mark.parametrize("spec", [("data",), (None, "data")])
@pytest.mark.parametrize("n_devices", [2, 4])
def test_it_does_not_depend_on_how_arrays_are_divided(spec, n_devices):
    mesh = jax.make_mesh((n_devices,), ("data",), devices=jax.devices()[:n_devices])
    divided = jax.device_put(TREE["a"], jax.NamedSharding(mesh, jax.P(*spec)))
    whole = jax.device_put(TREE["b"], jax.NamedSharding(mesh, jax.P()))
    assert tree_digests({"t": {"a": divided, "b": whole}}) == tree_digests({"t": TREE})


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8_e4m3fn", "int32", "uint8", "bool"]
)
def test_every_flipped_bit_changes_it(dtype):
    x = np.random.default_rng(0).integers(0, 2, 6).astype(dtype)
    bits = 1 if dtype == "bool" else 8 * x.itemsize
    digest = tree_digests({"t": {"a": x}})
    for i in range(x.size):
        for bit in range(bits):
            changed = x.copy()
            changed.view(f"uint{8 * x.itemsize}")[i] ^= 1 << bit
            assert tree_digests({"t": {"a": changed}}) != digest


def test_exchanged_elements_rows_and_leaves_and_signs_change_it():
    x, other = TREE["a"], TREE["a"] + 1
    trees = [{"a": x, "b": other}, {"a": other, "b": x}, {"a": x[::-1], "b": other}]
    trees += [{"a": x[:, ::-1], "b": other}, {"a": x.reshape(12, 8), "b": other + 0.5}]
    trees += [{"a": -x, "b": other}, {"a": x, "b": -other}, {"a": -x, "b": -other}]
    assert len({tree_digests({"t": tree})["t"] for tree in trees}) == len(trees)


def test_a_difference_names_the_tree_and_what_was_not_digested_passes():
    cursor = {DIGESTS: tree_digests({"params": TREE, "opt_state": TREE})}
    assert difference({"params": TREE, "opt_state": TREE}, cursor) is None
    changed = {**TREE, "b": {"c": np.zeros(5, np.int32)}}
    assert str(difference({"params": TREE, "opt_state": changed}, cursor)).startswith(
        "opt_state is"
    )
    assert difference({"params": changed}, {}) is None

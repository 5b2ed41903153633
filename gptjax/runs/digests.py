"""Digests of a checkpoint's trees, taken from memory before writing and after reading.

Checksums of files say that a disk gave back what it was given; a digest says that what is on the
devices again is what was on them: nothing between memory and the disk, neither a device, a host's
memory nor a library that divides and joins arrays, can change a bit unnoticed.

A digest is a sum over elements, modulo 2^32, of a hash of the element's bits and place. For one
place the hash is one to one, so a change of one element always changes the digest; another change
does all but once in 2^32. A sum does not depend on how arrays are divided over devices.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptjax.base.tree import Tree, named_leaves

DIGESTS = "digests"  # in a cursor; earlier versions have none there
_WORD = jnp.uint32
# odd, so that a product modulo 2^32 loses nothing: 2^32 over the golden ratio, MurmurHash3's
_APART, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def tree_digests(items: Mapping[str, Tree]) -> dict[str, int]:
    """The digest of each named tree; all processes that hold a part of them call this."""
    return {name: int(found) for name, found in jax.device_get(_digests(dict(items))).items()}


def difference(items: Mapping[str, Tree], cursor: Mapping[str, Any]) -> str | None:
    """What is not as it was when it was saved, by the digests in a cursor; None if all is."""
    saved = cursor.get(DIGESTS, {})
    found = tree_digests({name: tree for name, tree in items.items() if name in saved})
    for name, digest in found.items():
        if digest != saved[name]:
            return f"{name} is not what was saved: its digest is {digest}, not {saved[name]}"
    return None


@jax.jit
def _digests(items: dict[str, Tree]) -> dict[str, Array]:
    return {
        name: sum((_digest(leaf, at) for at, leaf in named_leaves(tree).items()), _WORD(0))
        for name, tree in items.items()
    }


def _digest(leaf: Array, name: str) -> Array:
    """The sum over one leaf, whose name enters as a place does: leaves cannot be exchanged."""
    place = jnp.full(leaf.shape, zlib.crc32(name.encode()), _WORD)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :]) % 2**32
        place += lax.broadcasted_iota(_WORD, leaf.shape, axis) * _WORD(stride)
    mixed = _bits(leaf) + place * _WORD(_APART)
    mixed = (mixed ^ mixed >> _WORD(16)) * _WORD(_FIRST)
    mixed = (mixed ^ mixed >> _WORD(13)) * _WORD(_SECOND)
    return jnp.sum(mixed, dtype=_WORD)


def _bits(leaf: Array) -> Array:
    """The bits of each element, of at most 32, as a number."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(_WORD)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    return lax.bitcast_convert_type(leaf, unsigned).astype(_WORD)

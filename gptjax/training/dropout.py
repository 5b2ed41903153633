"""The random bits of dropout: one generator, Philox 2x32, on any number of devices.

It is the cheapest of jax's generators that do not depend on the number of devices: it takes a
quarter of threefry's time on a CPU, and few enough operations to be fused with their user. On
several devices jax (0.10 and 0.12) cannot compile its own version ("Unable to convert MHLO to
StableHLO", of mulhi), so there the same bits are computed from products of halves.
"""

import math
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NAME = "philox2x32"
MULTIPLIER, WEYL, ROUNDS = np.uint32(0xD256D193), np.uint32(0x9E3779B9), 10
LOW = np.uint32(0xFFFF)


def dropout_generator(n_devices: int) -> Any:
    """The `impl` of `jax.random.key`; keys, folds and bits are the same for all."""
    return NAME if n_devices == 1 else _PORTABLE


def _mulhi(x: Any, y: Array) -> Array:
    """The upper 32 bits of x y."""
    a, b = x >> 16, x & LOW
    c, d = y >> 16, y & LOW
    middle = a * d + ((b * d) >> 16)
    return a * c + (middle >> 16) + ((b * c + (middle & LOW)) >> 16)


def _philox(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Two words of random bits for each counter (Salmon et al. 2011, "as easy as 1, 2, 3")."""
    for i in range(ROUNDS):
        if i:
            key = key + WEYL
        high, low = _mulhi(MULTIPLIER, high) ^ low ^ key, MULTIPLIER * high
    return high, low


def _counters(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """0, 1, 2, ... in this shape, as upper and lower 32 bits; no axis may have 2^32 or more."""
    if (size := math.prod(shape)) < 2**32:
        low = lax.iota(np.uint32, size).reshape(shape)
        return jnp.zeros_like(low), low
    high = low = jnp.zeros(shape, np.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        upper, lower = np.uint32(stride >> 32), np.uint32(stride & 0xFFFFFFFF)
        index = lax.broadcasted_iota(np.uint32, shape, axis)
        added = index * lower
        low = low + added
        high = high + index * upper + _mulhi(lower, index) + (low < added)  # and the carry
        stride *= shape[axis]
    return high, low


def _seed(seed: Array) -> Array:
    # jax hashes both halves of a 64-bit seed; where integers have 32 bits the upper one is 0
    word = jnp.asarray(seed).astype(jnp.uint32)
    return _philox(jnp.uint32(0), jnp.zeros_like(word), word)[0][None]


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _philox(key[0], *_counters(shape))[0][..., None]


def _fold_in(key: Array, data: Any) -> Array:
    word = jnp.asarray(data).astype(jnp.uint32)
    return _philox(key[0], jnp.zeros_like(word), word)[0][None]


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    first, second = _philox(key[0], *_counters(shape))
    if bit_width == 64:  # jax asks for this only if 64-bit types are on
        return (first.astype("uint64") << 32) | second.astype("uint64")
    return (first ^ second).astype(f"uint{bit_width}")


_PORTABLE = jax.extend.random.define_prng_impl(
    key_shape=(1,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="gptjax_philox2x32",
    tag="gphx",
)

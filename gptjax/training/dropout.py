"""The random bits of dropout: one generator, Philox 2x32, on any number of devices.

It is the cheapest of jax's that does not depend on the number of devices: a quarter of threefry's
time on a CPU, and few enough operations to be fused with what uses the bits. On several devices
jax 0.10 cannot compile its own ("Unable to convert MHLO to StableHLO", of mulhi), so there the same
bits are made with the products of halves.
"""

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


def _mulhi(y: Array) -> Array:
    """The upper 32 bits of MULTIPLIER x y."""
    a, b = MULTIPLIER >> 16, MULTIPLIER & LOW
    c, d = y >> 16, y & LOW
    middle = a * d + ((b * d) >> 16)
    return a * c + (middle >> 16) + ((b * c + (middle & LOW)) >> 16)


def _philox(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Two words of random bits for each counter (Salmon et al. 2011, "as easy as 1, 2, 3")."""
    for i in range(ROUNDS):
        if i:
            key = key + WEYL
        high, low = _mulhi(high) ^ low ^ key, MULTIPLIER * high
    return high, low


def _counters(shape: tuple[int, ...]) -> Array:
    """0, 1, 2, ... in this shape."""
    size = int(np.prod(shape, dtype=np.int64))
    if size >= 2**32:
        raise NotImplementedError(f"dropout of {shape}: more than 2^32 elements on one device")
    return lax.iota(np.uint32, size).reshape(shape)


def _seed(seed: Array) -> Array:
    # jax hashes both halves of a 64-bit seed; where integers have 32 bits the upper one is 0
    word = jnp.asarray(seed).astype(jnp.uint32)
    return _philox(jnp.uint32(0), jnp.zeros_like(word), word)[0][None]


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    low = _counters(shape)
    return _philox(key[0], jnp.zeros_like(low), low)[0][..., None]


def _fold_in(key: Array, data: Any) -> Array:
    word = jnp.asarray(data).astype(jnp.uint32)
    return _philox(key[0], jnp.zeros_like(word), word)[0][None]


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    low = _counters(shape)
    first, second = _philox(key[0], jnp.zeros_like(low), low)
    if bit_width == 64:
        raise NotImplementedError("dropout needs no 64-bit numbers")
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

"""Dropout draws the same bits on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gptjax.cluster.mesh import make_mesh
from gptjax.training import dropout
from gptjax.training.dropout import dropout_generator


@pytest.mark.parametrize("seed", [0, 1, 1337, 2**32 - 1])
def test_the_generator_of_several_devices_is_that_of_one(seed):
    one, several = (jax.random.key(seed, impl=dropout_generator(n)) for n in (1, 8))
    for derived in (
        lambda key: key,
        lambda key: jax.random.fold_in(jax.random.fold_in(key, 77), 2**32 - 1),
        lambda key: jax.random.split(key, (2, 3))[1, 2],
    ):
        expected, found = derived(one), derived(several)
        np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))
        for width in (jnp.uint8, jnp.uint32):
            bits = jax.random.bits(expected, (5, 300), width)
            np.testing.assert_array_equal(jax.random.bits(found, (5, 300), width), bits)
        kept = jax.random.bernoulli(expected, 0.9, (4, 3, 2))
        np.testing.assert_array_equal(jax.random.bernoulli(found, 0.9, (4, 3, 2)), kept)


def test_wide_numbers_are_those_of_one_device_too():
    with jax.enable_x64(True):
        one, several = (jax.random.key(3, impl=dropout_generator(n)) for n in (1, 8))
        expected = jax.random.bits(one, (3, 50), jnp.uint64)
        np.testing.assert_array_equal(jax.random.bits(several, (3, 50), jnp.uint64), expected)


@pytest.mark.parametrize("shape", [(2**17 + 1, 2**8, 2**9), (3, 2**31, 5), (2**20, 2**20)])
def test_more_numbers_than_32_bits_count_are_counted_in_64(shape):
    """One element of each is asked for, so that XLA computes that one alone."""

    @partial(jax.jit, static_argnums=0)
    def element(place: tuple[int, ...]) -> list[jax.Array]:
        return [lax.slice(x, place, [i + 1 for i in place]) for x in dropout._counters(shape)]

    for place in ((0,) * len(shape), tuple(n - 1 for n in shape), tuple(n // 3 for n in shape)):
        high, low = (int(x.item()) for x in element(place))
        assert (high << 32) + low == np.ravel_multi_index(place, shape)


def test_it_compiles_for_several_devices_and_each_draws_what_one_would():
    mesh, generator = make_mesh(8), dropout_generator(8)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, jax.lax.axis_index("data")), (1, 16))

    spec = jax.P("data")
    drawn = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=jax.P(), out_specs=spec))
    found = drawn(jax.random.key(7, impl=generator))
    alone = jax.random.key(7, impl=dropout_generator(1))
    expected = [jax.random.bits(jax.random.fold_in(alone, i), (16,)) for i in range(8)]
    np.testing.assert_array_equal(found, np.stack(expected))

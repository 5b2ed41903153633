"""Dropout draws the same bits on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.cluster.mesh import make_mesh
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

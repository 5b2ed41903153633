"""What XLA makes of products on CPUs, read from compiled programs: forms that it has fast code for.

A product is slow if its factors are converted to float32 first, or if its sum does not run along
the rows of its left factor.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gptjax.model.attention import BLOCK, blockwise_attention
from gptjax.model.products import mixed_matmul

INSTRUCTION = re.compile(r"%?([\w.-]+) = (\w+)\[([\d,]*)\]")
DOT = re.compile(r" dot\((?:\S+ )?%?([\w.-]+), (?:\S+ )?%?([\w.-]+)\).*lhs_contracting_dims={(\d)}")
TIME, HEADS, K = 8 * BLOCK, 2, 32  # two blocks in each segment of queries


def products(function, *shapes):
    """Type and shape of both factors of every product in a compiled gradient; the left one's axis.

    The gradient is of the sum of squares, so that it needs the values too.
    """
    gradient = jax.grad(lambda *args: jnp.square(function(*args)).sum(), range(len(shapes)))
    text = jax.jit(gradient).lower(*shapes).compile().as_text() or ""
    found = {
        name: (dtype, tuple(map(int, sizes.split(","))))
        for name, dtype, sizes in INSTRUCTION.findall(text)
        if sizes
    }
    return [(found[left], found[right], int(axis)) for left, right, axis in DOT.findall(text)]


def multiplies_bfloat16():
    """Whether the processor does; XLA widens the factors elsewhere."""
    info = Path("/proc/cpuinfo")
    return info.exists() and re.search(r"avx512_bf16|amx_bf16", info.read_text()) is not None


@pytest.mark.skipif(not multiplies_bfloat16(), reason="needs a processor that multiplies bfloat16")
def test_narrow_factors_stay_narrow():
    x = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16)
    of_weight = products(mixed_matmul, x, jax.ShapeDtypeStruct((256, 384), jnp.float32))
    qkv = jax.ShapeDtypeStruct((1, TIME, HEADS, K), jnp.bfloat16)
    of_attention = products(blockwise_attention, qkv, qkv, qkv)
    assert len(of_weight) == 3
    assert len(of_attention) >= 7
    for left, right, _ in of_weight + of_attention:
        assert (left[0], right[0]) == ("bf16", "bf16"), (left, right)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_attention_sums_along_rows_and_turns_no_scores(dtype):
    qkv = jax.ShapeDtypeStruct((1, TIME, HEADS, K), dtype)
    found = products(blockwise_attention, qkv, qkv, qkv)
    assert len(found) >= 7
    for (_, shape), _, axis in found:
        assert axis == len(shape) - 1
        assert shape[-2] in (BLOCK, K), "scores by key"

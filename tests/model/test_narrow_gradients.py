"""Gradients of narrow types: as near to float32 as those of the plain formulas, on both programs.

The program for GPUs runs here on processors, with the rounding that cuBLAS and XLA would save.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gptjax.config import ModelConfig
from gptjax.model.attention import xla_attention
from gptjax.model.layers import Block
from gptjax.model.ops import layer_norm
from gptjax.model.products import split_matmul

D, HEADS, TIME = 64, 2, 48


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=["cpu", "gpu"])
def program(request, monkeypatch):
    """Makes the functions of the model those of that platform."""
    if request.param == "gpu":
        monkeypatch.setattr(lax, "platform_dependent", lambda *xs, default, **_: default(*xs))
    return request.param


def plain_norm(x, scale, bias):
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return (normal * scale[None, None] + bias[None, None]).astype(x.dtype)


def plain_block(params, x):
    """A block as written down in a textbook: products in the type of `x`, the rest in float32."""

    def project(name, x):
        leaves = params[name[0]][name[1]]
        y = jnp.matmul(x, leaves["kernel"].astype(x.dtype), preferred_element_type=jnp.float32)
        return (y.astype(x.dtype) + leaves["bias"][None, None]).astype(x.dtype)

    def gelu(x):
        return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)

    qkv = project(("attn", "c_attn"), plain_norm(x, **params["ln_1"]))
    q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(qkv, 3, -1))
    x = x + project(("attn", "c_proj"), xla_attention(q, k, v).reshape(x.shape))
    h = gelu(project(("mlp", "c_fc"), plain_norm(x, **params["ln_2"])))
    return x + project(("mlp", "c_proj"), h)


def error(found, exact):
    """Of a tree of arrays: the norm of the difference by that of the exact ones, leaf by leaf."""

    def of_leaf(a, b):
        return np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b))

    return jax.tree.map(of_leaf, found, exact)


def draws(shapes, seed):
    """Params that are all at work: kernels of 1 / sqrt(D), scales around 1, biases."""
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [normal(*leaf.shape, seed=seed + i) / D**0.5 for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, drawn)
    for name in ("ln_1", "ln_2"):
        params[name]["scale"] = params[name]["scale"] + 1
    return params


def test_a_bfloat16_block_is_no_further_from_float32_than_plain_formulas(program):
    narrow, wide = (
        ModelConfig(1, HEADS, D, TIME, 100, dtype=dtype, attention="xla")
        for dtype in ("bfloat16", "float32")
    )
    shapes = jax.eval_shape(Block(wide).init, jax.random.key(0), jnp.ones((1, 1, D)))["params"]
    ratios, least = [], 1e-5  # one gradient is a float32 sum of what is given
    for seed in (0, 100, 200):
        params, x, dy = draws(shapes, seed), normal(8, TIME, D, seed=seed), normal(8, TIME, D)
        x, dy = (jnp.asarray(a, jnp.bfloat16) for a in (x, dy))

        def results(block, params, x, dy):
            y, backward = jax.vjp(block, params, x)
            return y, *backward(dy)

        of = jax.jit(results, static_argnums=0)
        exact = of(plain_block, params, x.astype(jnp.float32), dy.astype(jnp.float32))
        textbook = error(of(plain_block, params, x, dy), exact)
        ours = error(of(lambda p, x: Block(narrow).apply({"params": p}, x), params, x, dy), exact)
        assert max(jax.tree.leaves(ours)) < 0.02
        ratios.append(jax.tree.map(lambda a, b: (a + least) / (b + least), ours, textbook))
    # draws differ by a tenth; a bias or a scale summed in bfloat16 would be ten times as far
    mean = jax.tree.map(lambda *several: np.mean(several), *ratios)
    assert max(jax.tree.leaves(mean)) < 1.15, mean
    assert np.mean(jax.tree.leaves(mean)) < 1.02, mean


def test_a_float32_block_is_the_plain_one(program):
    cfg = ModelConfig(1, HEADS, D, TIME, 100, dtype="float32", attention="xla")
    shapes = jax.eval_shape(Block(cfg).init, jax.random.key(0), jnp.ones((1, 1, D)))["params"]
    params, x, dy = draws(shapes, 0), normal(2, TIME, D), normal(2, TIME, D, seed=1)
    block = lambda params, x: Block(cfg).apply({"params": params}, x)  # noqa: E731
    found, expected = (
        jax.jit(lambda params, x, dy, f=f: jax.vjp(f, params, x)[1](dy))(params, x, dy)
        for f in (block, plain_block)
    )
    assert max(jax.tree.leaves(error(found, expected))) < 2e-6


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_scale_of_a_layer_norm_has_an_exact_gradient(program, dtype, offset):
    """Also in rows far from 0, and in rows with one value far from the others, the first or not."""
    x, dy = normal(512, D) + offset, normal(512, D, seed=1)
    x[:128, 0] += 100
    x[128:256, 7] += 100
    x, dy = jnp.asarray(x, dtype), jnp.asarray(dy, dtype)
    scale, bias = normal(D, seed=2), normal(D, seed=3)
    gradients = jax.jit(lambda *args: jax.vjp(layer_norm, *args[:3])[1](args[3]))(
        x, scale, bias, dy
    )
    wide, wide_dy = np.float64(x), np.float64(dy)
    centred = wide - wide.mean(1, keepdims=True)
    of_rows = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    assert error(gradients[1], (wide_dy * of_rows).sum(0)) < 2e-6
    assert error(gradients[2], wide_dy.sum(0)) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_the_parts_of_a_product_are_those_of_numpy(program, bias):
    x, kernel, dy = normal(30, D), normal(D, 3 * 8, seed=1), normal(3, 30, 8, seed=2)
    bias_F = normal(3 * 8, seed=3) if bias else None
    multiply = lambda x, kernel, bias: split_matmul(x, kernel, bias, 3)  # noqa: E731
    parts, backward = jax.vjp(multiply, x, kernel, bias_F)
    dx, dkernel, dbias = backward(tuple(map(jnp.asarray, dy)))
    whole, added = np.concatenate(dy, 1), 0 if bias_F is None else bias_F
    np.testing.assert_allclose(np.concatenate(parts, 1), x @ kernel + added, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, whole @ kernel.T, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(dkernel, x.T @ whole, rtol=1e-5, atol=2e-5)
    if bias:
        np.testing.assert_allclose(dbias, whole.sum(0), rtol=1e-5, atol=1e-5)
    else:
        assert dbias is None

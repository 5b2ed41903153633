"""Products with a weight: exact in float32, and float32 where it matters in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gptjax.config import ModelConfig
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.products import materialised_on_cpu, mixed_matmul
from gptjax.model.projection import Projection

M, D, F = 300, 24, 40


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def pulled_back(x_MD, kernel_DF, dy_MF):
    """The product and its two gradients, compiled."""

    def forward_and_backward(x_MD, kernel_DF, dy_MF):
        y_MF, backward = jax.vjp(mixed_matmul, x_MD, kernel_DF)
        return y_MF, *backward(dy_MF)

    return jax.jit(forward_and_backward)(x_MD, kernel_DF, dy_MF)


def test_value_and_gradients_match_numpy():
    x_MD, kernel_DF, dy_MF = normal(M, D), normal(D, F, seed=1), normal(M, F, seed=2)
    x, kernel, dy = (a.astype(np.float64) for a in (x_MD, kernel_DF, dy_MF))
    results = pulled_back(x_MD, kernel_DF, dy_MF)
    for result, expected in zip(results, (x @ kernel, dy @ kernel.T, x.T @ dy), strict=True):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-5)
    eagerly, backward = jax.vjp(mixed_matmul, x_MD, kernel_DF)
    for result, compiled in zip((eagerly, *backward(dy_MF)), results, strict=True):
        np.testing.assert_allclose(result, compiled, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("platform", "narrow_results"), [("cpu", 0), ("cuda", 2)])
def test_every_product_asks_for_float32_sums(platform, narrow_results):
    """Read from the program, for a compiler may give more precision than was asked for.

    The program for CPUs rounds after each product, the one for GPUs within it; the gradient of the
    weight is rounded in neither.
    """
    x_MD, dy_MF = jnp.ones((M, D), jnp.bfloat16), jnp.ones((M, F), jnp.bfloat16)

    def forward_and_backward(x_MD, kernel_DF, dy_MF):
        y_MF, backward = jax.vjp(mixed_matmul, x_MD, kernel_DF)
        return y_MF, *backward(dy_MF)

    traced = jax.jit(forward_and_backward).trace(x_MD, jnp.ones((D, F)), dy_MF)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    signatures = [line.split(" : ")[-1] for line in text.splitlines() if "dot_general" in line]
    assert len(signatures) == 3
    assert all(signature.count("xbf16>") >= 2 for signature in signatures)
    results = [signature.split(" -> ")[1] for signature in signatures]
    assert sum(result.endswith("xbf16>") for result in results) == narrow_results
    assert f"tensor<{D}x{F}xf32>" in results


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_narrow_product_has_the_weights_gradient_in_float32(dtype):
    x_MD, dy_MF = (jnp.asarray(a, dtype) for a in (normal(M, D), normal(M, F, seed=2)))
    kernel_DF = normal(D, F, seed=1)
    y_MF, dx_MD, dkernel_DF = pulled_back(x_MD, kernel_DF, dy_MF)
    assert (y_MF.dtype, dx_MD.dtype, dkernel_DF.dtype) == (dtype, dtype, jnp.float32)

    x, dy = np.float64(x_MD), np.float64(dy_MF)
    exact = x.T @ dy
    assert abs(dkernel_DF - exact).max() < 1e-6 * abs(exact).max()
    assert abs(np.float64(exact.astype(dtype)) - exact).max() > 1e-4 * abs(exact).max()

    kernel = np.float64(jnp.asarray(kernel_DF, dtype))
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    for result, expected in ((y_MF, x @ kernel), (dx_MD, dy @ kernel.T)):
        np.testing.assert_allclose(np.float64(result), expected, rtol=1.01 * half_ulp, atol=1e-5)


def test_gradients_add_up_in_a_scan():
    """What a scanned stack of layers does: one kernel of many per iteration, in both directions."""
    x_MD, kernels_NDD = normal(8, D), normal(3, D, D, seed=1) / D**0.5

    def scanned(x_MD, kernels_NDD):
        def layer(x_MD, kernel_DD):
            return jnp.tanh(mixed_matmul(x_MD, kernel_DD)), None

        return lax.scan(layer, x_MD, kernels_NDD)[0].sum()

    def unrolled(x_MD, kernels_NDD):
        for kernel_DD in kernels_NDD:
            x_MD = jnp.tanh(jnp.matmul(x_MD, kernel_DD))
        return x_MD.sum()

    gradients, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1)))(x_MD, kernels_NDD) for f in (scanned, unrolled)
    )
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)


def test_a_scanned_stack_keeps_no_second_copy_of_its_kernels():
    """Temporaries of a gradient are activations, few here, far less than the blocks' weights."""
    cfg = ModelConfig(12, 2, 128, 32, 256, dtype="float32", attention="xla")
    tokens_BT = jax.ShapeDtypeStruct((1, 16), jnp.int32)

    def total(params, tokens_BT):
        return GPT(cfg).apply({"params": params}, tokens_BT).sum()

    gradient = jax.jit(jax.grad(total)).lower(parameter_shapes(cfg), tokens_BT).compile()
    block_weights = 4 * 12 * 12 * 128**2
    assert gradient.memory_analysis().temp_size_in_bytes < block_weights / 2


def test_settled_changes_nothing_and_holds_back_only_the_compiler_for_cpus():
    arrays = {"a": normal(3), "b": (jnp.arange(4), jnp.ones(2, jnp.bfloat16))}
    for before, after in zip(
        jax.tree.leaves(arrays), jax.tree.leaves(jax.jit(materialised_on_cpu)(arrays)), strict=True
    ):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    traced = jax.jit(lambda x: materialised_on_cpu(2 * x) + 1).trace(jnp.ones(3))
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) == (platform == "cpu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (7,)])
def test_a_projection_multiplies_the_last_axis_and_adds_its_bias(shape, bias):
    cfg = ModelConfig(dtype="float32")
    layer, x = Projection(cfg, F, bias), normal(*shape, D)
    params = {"kernel": normal(D, F, seed=1)} | ({"bias": normal(F, seed=2)} if bias else {})
    y = layer.apply({"params": params}, x)
    expected = np.float64(x) @ np.float64(params["kernel"]) + params.get("bias", 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_the_bias_of_a_bfloat16_projection_has_a_float32_gradient():
    """A bfloat16 sum over so many rows stands still at a few hundred."""
    x_MD = jnp.zeros((16384, D), jnp.bfloat16)
    dy_MF = jnp.asarray(np.abs(normal(16384, F)), jnp.bfloat16)
    layer = Projection(ModelConfig(), F, bias=True)
    params = {"kernel": jnp.zeros((D, F)), "bias": jnp.zeros(F)}

    def backward(params, x_MD, dy_MF):
        return jax.vjp(lambda params: layer.apply({"params": params}, x_MD), params)[1](dy_MF)[0]

    dbias_F = jax.jit(backward)(params, x_MD, dy_MF)["bias"]
    assert dbias_F.dtype == jnp.float32
    np.testing.assert_allclose(dbias_F, np.float64(dy_MF).sum(0), rtol=1e-5)

"""Matrix products with a weight, forward and backward, that every compiler runs fast.

XLA for CPUs fuses the elementwise work before a product (a norm, a GELU, a residual sum) into a
copy that transposes while it computes, which costs more than the product itself;
`materialised_on_cpu` keeps the two apart. Compilers for other devices are left alone.

Gradients of `mixed_matmul` are checked as those of `gptjax.model.ops`.
"""

from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model.arguments import check_shapes, floating, wide

Arrays = TypeVar("Arrays")


def materialised_on_cpu(arrays: Arrays) -> Arrays:
    """The same arrays, computed before their readers on CPUs; unchanged on other devices.

    >>> materialised_on_cpu({"a": jax.numpy.ones(2)})["a"].tolist()
    [1.0, 1.0]
    """
    # one by one: a joint barrier would make all of them vary over devices if one does
    return jax.tree.map(
        lambda x: lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x),
        arrays,
    )


def dot_fp32_sum(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    """Multiply two matrices over `axes`, one of each, with float32 sums: a result in `dtype`.

    GPUs round as they write. XLA for CPUs computes a float32 result that is rounded afterwards,
    because it uses the processor's bfloat16 instructions only then, and only if the sum runs along
    the rows of `a`; otherwise `a` is transposed first. Sums of float64 are float64.

    >>> a, b = jax.numpy.ones((2, 300)), jax.numpy.ones((4, 300))
    >>> print(dot_fp32_sum(a, b, (1, 1), "bfloat16")[0, 0])
    300
    """
    on_cpu = partial(dot_along_rows, axes=axes, dtype=dtype)
    elsewhere = partial(_dot, axes=axes, dtype=dtype)
    if a.dtype == wide(a, b):
        return elsewhere(a, b)
    return lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)


def dot_along_rows(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    """`dot_fp32_sum` in the form for CPUs, of matrices that lie in memory row by row.

    If the product sums over the columns of `a`, it is transposed first.

    >>> a, b = jax.numpy.ones((300, 2)), jax.numpy.ones((300, 4))
    >>> print(dot_along_rows(a, b, (0, 0), "float32")[0, 0])
    300.0
    """
    rows = _by_rows(a.T if axes[0] == 0 else a)
    return _by_rows(_dot(rows, _by_rows(b), (1, axes[1]), wide(a, b))).astype(dtype)


def _dot(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=dtype)


def _by_rows(x: Array) -> Array:
    """A matrix that lies in memory row by row, which keeps XLA from undoing its transposition."""
    return with_layout_constraint(x, Layout((0, 1)))


def matmul_precision(cfg: ModelConfig, device: Any) -> str:
    """The `jax.default_matmul_precision` for a model on such a device.

    Every unit multiplies narrow factors exactly, and XLA does not use its fastest GPU kernels for
    products that ask for more than the default.

    >>> matmul_precision(ModelConfig(dtype="float32"), jax.devices()[0])
    'highest'
    """
    if cfg.dtype != "float32":
        # A few products still have a float32 factor: a gradient of uncut logits. TF32
        # keeps at least as many of its bits as the compute type; the other factor is narrow.
        return "default"
    # The algorithm by name: jax means to change the alias "tensorfloat32". Processors and older
    # cards have only exact products and refuse to compile it.
    if cfg.float32_matmul == "tf32" and _has_tf32(device):
        return lax.DotAlgorithmPreset.TF32_TF32_F32.name
    return "highest"


def _has_tf32(device: Any) -> bool:
    """Whether it is an NVIDIA GPU from Ampere on."""
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def mixed_matmul(x_MD: ArrayLike, kernel_DF: ArrayLike, bias_F: ArrayLike | None = None) -> Array:
    """Multiply activations [M, D] by a float32 weight [D, F] in the activations' type: [M, F].

    Sums are float32 for every type of activations, and so are the gradients of weight and bias:
    they never pass through fewer bits on their way to the accumulator. Integers become float32.
    Raises `ValueError` for shapes that do not fit.

    >>> mixed_matmul(jnp.arange(6).reshape(2, 3), jnp.ones((3, 1)), [2]).tolist()
    [[5.0], [14.0]]
    """
    y: Any = _mixed_matmul(*_checked(x_MD, kernel_DF, bias_F))
    return y


def split_matmul(
    x_MD: ArrayLike, kernel_DF: ArrayLike, bias_F: ArrayLike | None, parts: int
) -> tuple[Array, ...]:
    """`mixed_matmul`, its result in equal parts along F, each an array of its own.

    GPUs multiply by each part of the weight, because dividing the result would copy it.

    >>> [y.tolist() for y in split_matmul([[2]], [[1, 3]], None, 2)]
    [[[2.0]], [[6.0]]]
    """
    y: Any = _split_matmul(*_checked(x_MD, kernel_DF, bias_F), parts)
    return y


def _checked(x_MD: ArrayLike, kernel_DF: ArrayLike, bias_F: ArrayLike | None):
    x, kernel = floating("x_MD", x_MD), floating("kernel_DF", kernel_DF)
    bias = None if bias_F is None else floating("bias_F", bias_F)
    check_shapes(x_MD=x, kernel_DF=kernel, bias_F=bias)
    return x, kernel, bias


@jax.custom_vjp
def _mixed_matmul(x_MD: Array, kernel_DF: Array, bias_F: Array | None) -> Array:
    return _forward(x_MD, kernel_DF, bias_F)[0]


def _forward(x_MD: Array, kernel_DF: Array, bias_F: Array | None):
    x_MD, settled_DF = materialised_on_cpu((x_MD, kernel_DF))
    y_MF = _with_bias(x_MD, settled_DF.astype(x_MD.dtype), bias_F)
    # save the kernel itself: a materialised one would be a new array, and a scan would stack a
    # second copy of the kernels of all layers
    return y_MF, (x_MD, kernel_DF, bias_F)


def _with_bias(x_MD: Array, kernel_DF: Array, bias_F: Array | None) -> Array:
    if bias_F is None:
        return dot_fp32_sum(x_MD, kernel_DF, (1, 0), x_MD.dtype)

    def sum_in(dtype: Any):
        def multiply_and_add(x_MD: Array, kernel_DF: Array, bias_F: Array) -> Array:
            y_MF = dot_fp32_sum(x_MD, kernel_DF, (1, 0), x_MD.dtype).astype(dtype)
            return (y_MF + bias_F.astype(dtype)[None]).astype(x_MD.dtype)

        return multiply_and_add

    # cuBLAS adds to its float32 sums as it writes them, if XLA sees a sum in the result's type
    arguments = (x_MD, kernel_DF, bias_F)
    return lax.platform_dependent(
        *arguments, cpu=sum_in(wide(x_MD, bias_F)), default=sum_in(x_MD.dtype)
    )


def _backward(saved: tuple, dy_MF: Array):
    x_MD, kernel_DF, bias_F = saved
    dbias_F = None if bias_F is None else dy_MF.astype(bias_F.dtype).sum(0)
    x_MD, kernel_DF, dy_MF = materialised_on_cpu((x_MD, kernel_DF, dy_MF))
    dx_MD = dot_fp32_sum(dy_MF, kernel_DF.astype(dy_MF.dtype), (1, 1), x_MD.dtype)
    dkernel_DF = dot_fp32_sum(x_MD, dy_MF, (0, 0), kernel_DF.dtype)
    return dx_MD, dkernel_DF, dbias_F


_mixed_matmul.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _split_matmul(x_MD: Array, kernel_DF: Array, bias_F: Array | None, parts: int):
    return _split_forward(x_MD, kernel_DF, bias_F, parts)[0]


def _split_forward(x_MD: Array, kernel_DF: Array, bias_F: Array | None, parts: int):
    def one_product(x_MD: Array, kernel_DF: Array, bias_F: Array | None) -> tuple[Array, ...]:
        return tuple(jnp.split(_forward(x_MD, kernel_DF, bias_F)[0], parts, 1))

    def one_each(x_MD: Array, kernel_DF: Array, bias_F: Array | None) -> tuple[Array, ...]:
        kernels = jnp.split(kernel_DF, parts, 1)
        biases = [None] * parts if bias_F is None else jnp.split(bias_F, parts)
        xs = lax.optimization_barrier((x_MD,) * parts)  # or XLA merges products of the same factor
        return tuple(_forward(x, k, b)[0] for x, k, b in zip(xs, kernels, biases, strict=True))

    saved = (x_MD, kernel_DF, bias_F)
    return lax.platform_dependent(*saved, cpu=one_product, default=one_each), saved


def _split_backward(parts: int, saved: tuple, dy: tuple[Array, ...]):
    del parts  # as many as there are gradients
    whole = lax.platform_dependent(*dy, cpu=lambda *dy: jnp.concatenate(dy, 1), default=_joined)
    return _backward(saved, whole)


def _joined(*dy: Array) -> Array:
    """`concatenate` along F as a sum, which XLA for GPUs fuses with the bias's sum over rows."""
    width, zero = dy[0].shape[1], jnp.zeros((), dy[0].dtype)
    before = [(i * width, (len(dy) - 1 - i) * width) for i in range(len(dy))]
    padded = (
        lax.pad(part, zero, ((0, 0, 0), (*edges, 0)))
        for part, edges in zip(dy, before, strict=True)
    )
    return reduce(jnp.add, padded)


_split_matmul.defvjp(_split_forward, _split_backward)

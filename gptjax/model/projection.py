"""The dense layer of a block: a product with a weight, a bias, a low-rank adapter.

It is divided over devices and over the parts of its result, and decoders store its kernel the other
way round.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.arguments import at_least, with_last_axis
from gptjax.model.parallel import copy_to_tensor, sum_over_tensor
from gptjax.model.places import TENSOR, UNSHARDED, ModelSharding, has_adapter
from gptjax.model.products import (
    dot_fp32_sum,
    materialised_on_cpu,
    mixed_matmul,
    split_matmul,
)

TRANSPOSED = "kernel_FD"  # the name of a kernel that is stored the other way round
PRODUCT = "product"  # what a rematerialisation policy may keep: products, or the sums they end in
INIT_STD = 0.02  # GPT-1 and GPT-2, section "model specifications": N(0, 0.02)


class Projection(nn.Module):
    """A dense layer. Shapes: [..., in] to [..., features].

    >>> layer = Projection(ModelConfig(), features=3, bias=False)
    >>> layer.apply({"params": {"kernel": jnp.eye(2, 3)}}, jnp.array([[5, 7]])).tolist()
    [[5.0, 7.0, 0.0]]
    """

    cfg: ModelConfig
    features: int
    bias: bool = True
    is_residual: bool = False
    """Whether it writes into the residual stream: GPT-2 divides the initial scale of such layers by
    sqrt(2 N) (section 2.3 of the paper)."""
    split: ModelSharding = UNSHARDED
    """Along `tensor` a residual projection has part of the inputs, others part of the features."""
    parts: int = 1
    """If more than one, the result is a tuple: the features in so many equal parts."""

    @nn.compact
    def __call__(self, x: ArrayLike, train: bool = False) -> Any:
        """Multiply and add; dropout falls on the input of an adapter when `train`."""
        at_least(1, features=self.features)
        x = with_last_axis("x", x)
        if not self.is_residual:
            x = copy_to_tensor(x, self.split)
        std = INIT_STD
        if self.is_residual and self.cfg.scale_residual_init:
            std /= (2 * self.cfg.n_layer) ** 0.5
        x_MD = x.reshape(-1, x.shape[-1])
        is_transposed = self.has_variable("params", TRANSPOSED)
        if is_transposed:
            kernel = self.get_variable("params", TRANSPOSED)
        else:
            shape = (x.shape[-1], self.features)
            kernel = self.param("kernel", nn.initializers.normal(std), shape)
        adapted_MF = None
        if has_adapter("/".join(("h", *self.path)), self.cfg):
            adapted_MF = self.adapter(x_MD, train)
        bias_F = None
        if self.bias:
            bias_F = self.param("bias", nn.initializers.zeros, (self.features,))
        # the bias joins the product, unless the product is to be summed over devices first
        is_last = is_transposed or (self.is_residual and self.split.tensor > 1)
        if is_transposed:  # the layer of a decoder, which does not train
            kernel_FD = kernel.astype(x.dtype)
            y_MF = dot_fp32_sum(materialised_on_cpu(x_MD), kernel_FD, (1, 1), x.dtype)
            y = self._divided(y_MF)
        elif self.parts > 1:
            y = split_matmul(x_MD, kernel, bias_F, self.parts)
        else:
            y = (mixed_matmul(x_MD, kernel, None if is_last else bias_F),)
        if adapted_MF is not None:
            y = _sums(y, self._divided(adapted_MF))
        if self.is_residual:
            y = tuple(sum_over_tensor(part, self.split) for part in y)
        if is_last and bias_F is not None:
            y = _sums(y, self._divided(bias_F[None]))
        y = tuple(part.reshape(*x.shape[:-1], -1) for part in y)
        if not self.is_residual:
            y = tuple(checkpoint_name(part, PRODUCT) for part in y)
        return y if self.parts > 1 else y[0]

    def _divided(self, y_MF: Array) -> tuple[Array, ...]:
        return tuple(jnp.split(y_MF, self.parts, -1))

    def adapter(self, x_MD: Array, train: bool) -> Array:
        """What a low-rank adapter adds: nothing at first, since its second matrix starts as zeros.

        Hu et al. (2021), equation 3: `x A B alpha / R`. A is drawn as PEFT draws it, U(-1, 1)
        divided by the root of its inputs.
        """
        rank, inputs = self.cfg.lora_rank, x_MD.shape[-1]
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0)
        a_DR = self.param("lora_A", uniform, (inputs, rank))
        b_RF = self.param("lora_B", nn.initializers.zeros, (rank, self.features))
        # of a divided matrix, one of the two is whole on every device along `tensor`
        a_DR = a_DR if self.is_residual else copy_to_tensor(a_DR, self.split)
        b_RF = copy_to_tensor(b_RF, self.split) if self.is_residual else b_RF
        key = self.make_rng("dropout") if train and self.cfg.lora_dropout else None
        if key is not None and self.is_residual and self.split.tensor > 1:
            key = jax.random.fold_in(key, lax.axis_index(TENSOR))  # other inputs, other masks
        x_MD = ops.dropout(x_MD, self.cfg.lora_dropout, key)
        return mixed_matmul(mixed_matmul(x_MD, a_DR), b_RF) * (self.cfg.lora_alpha / rank)


def _sums(y: tuple[Array, ...], more: tuple[Array, ...]) -> tuple[Array, ...]:
    """Part by part, in the wider type, so that the gradient of a bias is a sum in it."""
    return tuple((a + b).astype(a.dtype) for a, b in zip(y, more, strict=True))

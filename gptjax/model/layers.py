"""The layers of a GPT block, as stateless Linen modules over `ops`.

Modules carry GPT-2's own names (`ln_1`, `attn/c_attn`, `mlp/c_fc`, ...) and kernels are
(in, out) as in OpenAI's and Hugging Face's checkpoints. Parameters are float32; each layer casts
them to the compute type.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from gptjax.config import ModelConfig
from gptjax.model import ops

INIT_STD = 0.02  # GPT-1 and GPT-2, section "model specifications": N(0, 0.02)


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics and an optional bias. Shapes: [..., D] to [..., D]."""

    bias: bool

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Normalise the last axis."""
        width = x_BTD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,))
        bias_D = self.param("bias", nn.initializers.zeros, (width,)) if self.bias else None
        return ops.layer_norm(x_BTD, scale_D, bias_D)


def projection(cfg: ModelConfig, features: int, name: str, bias: bool, residual: bool = False):
    """A dense layer [..., in] to [..., features].

    `residual` marks the two projections of a block that write into the residual stream; GPT-2
    divides their initial scale by sqrt(2 N) (section 2.3 of the paper).
    """
    std = INIT_STD
    if residual and cfg.scale_residual_init:
        std /= (2 * cfg.n_layer) ** 0.5
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=jnp.dtype(cfg.dtype),
        kernel_init=nn.initializers.normal(std),
        name=name,
    )


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention that sees only the past. Shapes: [B, T, D] to [B, T, D]."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array, train: bool) -> Array:
        """Attend; dropout falls on the weights when `train`."""
        cfg = self.cfg
        batch, time, width = x_BTD.shape
        qkv = projection(cfg, 3 * width, "c_attn", cfg.qkv_bias)(x_BTD)
        q_BTHK, k_BTHK, v_BTHK = (
            part.reshape(batch, time, cfg.n_head, cfg.head_dim) for part in jnp.split(qkv, 3, -1)
        )
        key = self.make_rng("dropout") if train and cfg.attn_pdrop else None
        y_BTHK = ops.attention(q_BTHK, k_BTHK, v_BTHK, ops.causal_mask(time), cfg.attn_pdrop, key)
        y_BTD = y_BTHK.reshape(batch, time, width)
        return projection(cfg, width, "c_proj", cfg.bias, residual=True)(y_BTD)


class MLP(nn.Module):
    """Two projections around a GELU, four times as wide inside. Shapes: [B, T, D] to [B, T, D]."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Widen, bend, narrow."""
        h_BTF = projection(self.cfg, 4 * self.cfg.n_embd, "c_fc", self.cfg.bias)(x_BTD)
        return projection(self.cfg, self.cfg.n_embd, "c_proj", self.cfg.bias, residual=True)(
            ops.gelu(h_BTF)
        )


class Block(nn.Module):
    """Attention and MLP, each with a residual sum and a norm. Shapes: [B, T, D] to [B, T, D].

    `pre` is GPT-2's order, `x + f(norm(x))`; `post` is GPT-1's, `norm(x + f(x))`.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array, train: bool) -> Array:
        """Apply the block; dropout falls on both sub-layers' outputs when `train`."""
        cfg = self.cfg
        attn, mlp = CausalSelfAttention(cfg, name="attn"), MLP(cfg, name="mlp")
        ln_1, ln_2 = LayerNorm(cfg.bias, name="ln_1"), LayerNorm(cfg.bias, name="ln_2")
        if cfg.norm == "pre":
            x_BTD = x_BTD + self.residual_dropout(attn(ln_1(x_BTD), train), train)
            return x_BTD + self.residual_dropout(mlp(ln_2(x_BTD)), train)
        x_BTD = ln_1(x_BTD + self.residual_dropout(attn(x_BTD, train), train))
        return ln_2(x_BTD + self.residual_dropout(mlp(x_BTD), train))

    def residual_dropout(self, y_BTD: Array, train: bool) -> Array:
        """Drop elements of a sub-layer's output before it joins the residual stream."""
        key = self.make_rng("dropout") if train and self.cfg.resid_pdrop else None
        return ops.dropout(y_BTD, self.cfg.resid_pdrop, key)

"""The layers of a GPT block, as stateless Linen modules over `ops`.

Modules carry GPT-2's own names (`ln_1`, `attn/c_attn`, `mlp/c_fc`, ...) and kernels are
(in, out) as in OpenAI's and Hugging Face's checkpoints. Parameters are float32; each layer casts
them to the type of its input and computes in that. Integers become float32. Layers with dropout
take `train`, False by default; True needs a key, `rngs={"dropout": key}`. A shape that does not fit
and a config with mistakes raise `ValueError`.
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
from gptjax.model.arguments import at_least, check_model, check_shapes, floating, integers
from gptjax.model.attention import ATTENTIONS
from gptjax.model.cache import LayerCache, append, attend_to_cache
from gptjax.model.parallel import copy_to_tensor, gathered, sum_over_tensor
from gptjax.model.places import TENSOR, UNSHARDED, ModelSharding, has_adapter
from gptjax.model.products import dot_fp32_sum, materialised_on_cpu, mixed_matmul

Past = tuple[LayerCache, Array]  # a layer's cache, and the tokens in each row of it
TRANSPOSED = "kernel_FD"  # the name of a kernel that is stored the other way round
PRODUCT = "product"  # the name of what a rematerialisation policy may keep
ACTIVATIONS = {"gelu_tanh": ops.gelu, "gelu_erf": ops.gelu_erf}  # by `ModelConfig.activation`
INIT_STD = 0.02  # GPT-1 and GPT-2, section "model specifications": N(0, 0.02)


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics and an optional bias. Shapes: [..., D] to [..., D].

    >>> params = {"scale": jnp.ones(2), "bias": jnp.ones(2)}
    >>> LayerNorm().apply({"params": params}, jnp.array([[1, 3]])).round(2).tolist()
    [[0.0, 2.0]]
    """

    bias: bool = True

    @nn.compact
    def __call__(self, x_BTD: ArrayLike) -> Array:
        """Normalise the last axis."""
        x_BTD = _with_last_axis("x_BTD", x_BTD)
        width = x_BTD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,))
        bias_D = self.param("bias", nn.initializers.zeros, (width,)) if self.bias else None
        return ops.layer_norm(x_BTD, scale_D, bias_D)


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

    @nn.compact
    def __call__(self, x: ArrayLike, train: bool = False) -> Array:
        """Multiply and add; dropout falls on the input of an adapter when `train`."""
        at_least(1, features=self.features)
        x = _with_last_axis("x", x)
        if not self.is_residual:
            x = copy_to_tensor(x, self.split)
        std = INIT_STD
        if self.is_residual and self.cfg.scale_residual_init:
            std /= (2 * self.cfg.n_layer) ** 0.5
        x_MD = x.reshape(-1, x.shape[-1])
        if self.has_variable("params", TRANSPOSED):  # the layer of a decoder, which does not train
            kernel_FD = self.get_variable("params", TRANSPOSED).astype(x.dtype)
            y_MF = dot_fp32_sum(materialised_on_cpu(x_MD), kernel_FD, (1, 1), x.dtype)
        else:
            shape = (x.shape[-1], self.features)
            kernel_DF = self.param("kernel", nn.initializers.normal(std), shape)
            y_MF = mixed_matmul(x_MD, kernel_DF)
        if has_adapter("/".join(("h", *self.path)), self.cfg):
            y_MF = y_MF + self.adapter(x_MD, train)
        if self.is_residual:
            y_MF = sum_over_tensor(y_MF, self.split)
        if self.bias:
            bias_F = self.param("bias", nn.initializers.zeros, (self.features,))
            # added in float32, so that the bias's gradient is a float32 sum
            y_MF = (y_MF + bias_F[None]).astype(y_MF.dtype)
        return checkpoint_name(y_MF.reshape(*x.shape[:-1], self.features), PRODUCT)

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


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention that sees only the past. Shapes: [B, T, D] to [B, T, D].

    If `documents_BT` numbers documents, a token sees only the past of its own document. With a
    `past`, a layer's cache and the number of tokens in each row of it, the result is a pair: the
    second is the cache with the new tokens. They are one token a row, or prompts for empty rows.

    >>> attention = CausalSelfAttention(ModelConfig(n_head=2, n_embd=8))
    >>> y_BTD, _ = attention.init_with_output(jax.random.key(0), jnp.ones((1, 5, 8)))
    >>> y_BTD.shape
    (1, 5, 8)
    """

    cfg: ModelConfig
    split: ModelSharding = UNSHARDED

    @nn.compact
    def __call__(
        self,
        x_BTD: ArrayLike,
        train: bool = False,
        documents_BT: ArrayLike | None = None,
        past: Past | None = None,
    ) -> Any:
        """Attend; dropout falls on the weights when `train`."""
        cfg, split = self.cfg, self.split
        x_BTD = _residual_stream(x_BTD, cfg, documents_BT)
        batch, time, _ = x_BTD.shape
        width = cfg.n_embd // split.tensor  # of the heads that are here
        qkv = Projection(cfg, 3 * width, cfg.qkv_bias, split=split, name="c_attn")(x_BTD, train)
        q_BTHK, k_BTHK, v_BTHK = (
            part.reshape(batch, time, -1, cfg.head_dim) for part in jnp.split(qkv, 3, -1)
        )
        key = self.make_rng("dropout") if train and cfg.attn_pdrop else None
        if key is not None and split.tensor > 1:
            key = jax.random.fold_in(key, lax.axis_index(TENSOR))  # other heads, other weights
        cache = None if past is None else append(past[0], k_BTHK, v_BTHK, past[1])
        if cache is not None and past is not None and time == 1:
            y_BTHK = attend_to_cache(q_BTHK[:, 0], cache, past[1])
        else:
            attend = ATTENTIONS[cfg.attention]
            y_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, cfg.attn_pdrop, key, documents_BT)
        project = Projection(cfg, cfg.n_embd, cfg.bias, True, split, name="c_proj")
        y_BTD = project(y_BTHK.reshape(batch, time, width), train)
        return y_BTD if cache is None else (y_BTD, cache)


class MLP(nn.Module):
    """Two projections around a GELU, four times as wide inside. Shapes: [B, T, D] to [B, T, D].

    >>> mlp = MLP(ModelConfig(n_embd=12))
    >>> y_BTD, _ = mlp.init_with_output(jax.random.key(0), jnp.ones((1, 5, 12)))
    >>> y_BTD.shape
    (1, 5, 12)
    """

    cfg: ModelConfig
    split: ModelSharding = UNSHARDED

    @nn.compact
    def __call__(self, x_BTD: ArrayLike, train: bool = False) -> Array:
        """Project up, apply GELU, project down."""
        cfg, split = self.cfg, self.split
        x_BTD = _residual_stream(x_BTD, cfg)
        width = 4 * cfg.n_embd // split.tensor
        h_BTF = Projection(cfg, width, cfg.bias, split=split, name="c_fc")(x_BTD, train)
        project = Projection(cfg, cfg.n_embd, cfg.bias, True, split, name="c_proj")
        return project(ACTIVATIONS[cfg.activation](h_BTF), train)


class Block(nn.Module):
    """Attention and MLP, each with a residual sum and a norm. Shapes: [B, T, D] to [B, T, D].

    `pre` is GPT-2's order, `x + f(norm(x))`; `post` is GPT-1's, `norm(x + f(x))`. A `past` is for
    the attention, and makes the result the same pair as there.

    >>> block = Block(ModelConfig(n_head=2, n_embd=8))
    >>> variables = block.init(jax.random.key(0), jnp.ones((1, 5, 8)))
    >>> block.apply(variables, jnp.ones((2, 3, 8))).shape
    (2, 3, 8)
    """

    cfg: ModelConfig
    split: ModelSharding = UNSHARDED

    @nn.compact
    def __call__(
        self,
        x_BTD: ArrayLike,
        train: bool = False,
        documents_BT: ArrayLike | None = None,
        past: Past | None = None,
    ) -> Any:
        """Apply the block; dropout falls on both sub-layers' outputs when `train`."""
        cfg, split = self.cfg, self.split
        x_BTD = _residual_stream(x_BTD, cfg, documents_BT)
        attn, mlp = CausalSelfAttention(cfg, split, name="attn"), MLP(cfg, split, name="mlp")
        ln_1, ln_2 = LayerNorm(cfg.bias, name="ln_1"), LayerNorm(cfg.bias, name="ln_2")
        is_pre = cfg.norm == "pre"
        y_BTD = attn(ln_1(x_BTD) if is_pre else x_BTD, train, documents_BT, past)
        y_BTD, cache = (y_BTD, None) if past is None else y_BTD
        x_BTD = x_BTD + self.residual_dropout(y_BTD, train)
        if is_pre:
            x_BTD = x_BTD + self.residual_dropout(mlp(ln_2(x_BTD), train), train)
        else:
            x_BTD = ln_1(x_BTD)
            x_BTD = ln_2(x_BTD + self.residual_dropout(mlp(x_BTD, train), train))
        return x_BTD if past is None else (x_BTD, cache)

    def residual_dropout(self, y_BTD: Array, train: bool) -> Array:
        """Drop elements of a sub-layer's output before it joins the residual stream."""
        key = self.make_rng("dropout") if train and self.cfg.resid_pdrop else None
        return ops.dropout(y_BTD, self.cfg.resid_pdrop, key)


def _with_last_axis(name: str, x: ArrayLike) -> Array:
    """An array of floats, [..., D]."""
    x = floating(name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {x.shape}: expected [..., D]")
    return x


def _residual_stream(
    x_BTD: ArrayLike, cfg: ModelConfig, documents_BT: ArrayLike | None = None
) -> Array:
    """The input as floats, after checking the config and the width."""
    check_model(cfg)
    x = floating("x_BTD", x_BTD)
    sizes = check_shapes({"D": cfg.n_embd}, x_BTD=x)
    if documents_BT is not None:
        check_shapes(sizes, documents_BT=integers("documents_BT", documents_BT))
    return x


def gathering_block(
    block: type[nn.Module], cfg: ModelConfig, split: ModelSharding
) -> type[nn.Module]:
    """`Block` that gathers its parameters over `fsdp` where it is applied.

    >>> gathering_block(Block, ModelConfig(), UNSHARDED) is Block
    True
    """
    if split == UNSHARDED:
        return block

    def gather(variables: dict) -> dict:
        return {"params": gathered(variables["params"], split, cfg, prefix="h/")}

    return nn.map_variables(block, "params", trans_in_fn=gather)

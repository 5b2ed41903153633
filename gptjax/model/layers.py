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
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.arguments import check_model, check_shapes, floating, integers, with_last_axis
from gptjax.model.attention import ATTENTIONS
from gptjax.model.cache import LayerCache, append, attend_to_cache
from gptjax.model.parallel import gathered
from gptjax.model.places import TENSOR, UNSHARDED, ModelSharding
from gptjax.model.projection import PRODUCT, Projection

Past = tuple[LayerCache, Array]  # a layer's cache, and the tokens in each row of it
ACTIVATIONS = {"gelu_tanh": ops.gelu, "gelu_erf": ops.gelu_erf}  # by `ModelConfig.activation`


class LayerNorm(nn.Module):
    """Layer norm with float32 statistics and an optional bias. Shapes: [..., D] to [..., D].

    >>> params = {"scale": jax.numpy.ones(2), "bias": jax.numpy.ones(2)}
    >>> LayerNorm().apply({"params": params}, jax.numpy.array([[1, 3]])).round(2).tolist()
    [[0.0, 2.0]]
    """

    bias: bool = True

    @nn.compact
    def __call__(self, x_BTD: ArrayLike) -> Array:
        """Normalise the last axis."""
        x_BTD = with_last_axis("x_BTD", x_BTD)
        width = x_BTD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (width,))
        bias_D = self.param("bias", nn.initializers.zeros, (width,)) if self.bias else None
        return ops.layer_norm(x_BTD, scale_D, bias_D)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention that sees only the past. Shapes: [B, T, D] to [B, T, D].

    If `documents_BT` numbers documents, a token sees only the past of its own document. With a
    `past`, a layer's cache and the number of tokens in each row of it, the result is a pair: the
    second is the cache with the new tokens. They are one token a row, or prompts for empty rows.

    >>> attention = CausalSelfAttention(ModelConfig(n_head=2, n_embd=8))
    >>> y_BTD, _ = attention.init_with_output(jax.random.key(0), jax.numpy.ones((1, 5, 8)))
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
        project = Projection(cfg, 3 * width, cfg.qkv_bias, split=split, parts=3, name="c_attn")
        q_BTHK, k_BTHK, v_BTHK = (
            part.reshape(batch, time, -1, cfg.head_dim) for part in project(x_BTD, train)
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
    >>> y_BTD, _ = mlp.init_with_output(jax.random.key(0), jax.numpy.ones((1, 5, 12)))
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
    >>> variables = block.init(jax.random.key(0), jax.numpy.ones((1, 5, 8)))
    >>> block.apply(variables, jax.numpy.ones((2, 3, 8))).shape
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
        x_BTD = self.residual_sum(x_BTD, y_BTD, train)
        if is_pre:
            x_BTD = self.residual_sum(x_BTD, mlp(ln_2(x_BTD), train), train)
        else:
            x_BTD = ln_1(x_BTD)
            x_BTD = ln_2(self.residual_sum(x_BTD, mlp(x_BTD, train), train))
        return x_BTD if past is None else (x_BTD, cache)

    def residual_sum(self, x_BTD: Array, y_BTD: Array, train: bool) -> Array:
        """Add a sub-layer's output to the residual stream, after dropping elements of it."""
        key = self.make_rng("dropout") if train and self.cfg.resid_pdrop else None
        y_BTD = ops.dropout(y_BTD, self.cfg.resid_pdrop, key)
        # as matrices: then GPUs add while they write the product, without a copy of `x` before.
        # The sum is kept and not the product, which would have to be written by itself.
        x_MD, y_MD = (part.reshape(-1, self.cfg.n_embd) for part in (x_BTD, y_BTD))
        return checkpoint_name(x_MD + y_MD, PRODUCT).reshape(x_BTD.shape)


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

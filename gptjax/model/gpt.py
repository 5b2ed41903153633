"""The GPT: embeddings, a stack of blocks, a head. Stateless: `init` and `apply`, nothing else.

Letters: B batch, T time, D width, H heads, K head dim, F MLP width, N layers, V vocabulary.

The N blocks are one block scanned over stacked parameters, so every leaf below `h/` has a leading
axis N; `unroll` chooses between fast compilation and fast steps without changing the parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.layers import INIT_STD, Block, LayerNorm
from gptjax.tree import count

PADDING_LOGIT = -1e9  # keeps rows that only pad the table out of every softmax


class GPT(nn.Module):
    """A decoder-only transformer: GPT-2 by default, GPT-1 by five fields of its config.

    Radford et al. (2018, 2019). Token ids [B, T] to float32 logits [B, T, V], V padded to a
    multiple of 128 with the padding masked.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, tokens_BT: Array, train: bool = False) -> Array:
        """Return next-token logits; `train` needs a `dropout` key if any rate is above 0."""
        cfg = self.cfg
        time = tokens_BT.shape[1]
        if time > cfg.n_ctx:
            raise ValueError(f"{time} tokens do not fit the context of {cfg.n_ctx}")
        dtype, init = jnp.dtype(cfg.dtype), nn.initializers.normal(INIT_STD)
        wte = nn.Embed(cfg.padded_vocab, cfg.n_embd, dtype=dtype, embedding_init=init, name="wte")
        wpe = nn.Embed(cfg.n_ctx, cfg.n_embd, dtype=dtype, embedding_init=init, name="wpe")

        x_BTD = wte(tokens_BT) + wpe(jnp.arange(time))[None]
        key = self.make_rng("dropout") if train and cfg.embd_pdrop else None
        x_BTD = ops.dropout(x_BTD, cfg.embd_pdrop, key)
        x_BTD, _ = nn.scan(
            lambda block, x_BTD, _: (block(x_BTD, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=cfg.n_layer,
            unroll=min(cfg.unroll, cfg.n_layer),
        )(Block(cfg, name="h"), x_BTD, None)
        if cfg.final_norm:
            x_BTD = LayerNorm(cfg.bias, name="ln_f")(x_BTD)

        if cfg.tied_head:
            head_VD = wte.embedding.astype(dtype)
        else:
            head_VD = self.param("lm_head", init, (cfg.padded_vocab, cfg.n_embd)).astype(dtype)
        logits_BTV = jnp.einsum("btd,vd->btv", x_BTD, head_VD, preferred_element_type=jnp.float32)
        is_padding_V = jnp.arange(cfg.padded_vocab) >= (cfg.n_vocab or 0)
        return jnp.where(is_padding_V[None, None], PADDING_LOGIT, logits_BTV)


def init_params(cfg: ModelConfig, key: Array) -> dict:
    """Draw float32 parameters: N(0, 0.02), residual projections narrower, norms 1, biases 0."""
    return dict(GPT(cfg).init(key, jnp.zeros((1, 1), jnp.int32))["params"])


def parameter_shapes(cfg: ModelConfig) -> dict:
    """The parameter tree as shapes and types, computed without allocating anything."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters as papers count them: padding of the vocabulary left out."""
    tables = 1 if cfg.tied_head else 2
    padding = (cfg.padded_vocab - (cfg.n_vocab or 0)) * cfg.n_embd * tables
    return count(parameter_shapes(cfg)) - padding

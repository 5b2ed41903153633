"""The GPT: embeddings, a stack of blocks, a head. Stateless: `init` and `apply`, nothing else.

Letters: B batch, T time, D width, H heads, K head dim, F MLP width, N layers, V vocabulary.

The N blocks are one block scanned over stacked parameters, so every leaf below `h/` has a leading
axis N; `unroll` chooses between fast compilation and fast steps without changing the parameters.
"""

import dataclasses
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model import ops
from gptjax.model.arguments import at_least, check_model, check_shapes, floating, integers, wide
from gptjax.model.heads import ClassificationHead
from gptjax.model.layers import Block, LayerNorm, gathering_block
from gptjax.model.parallel import embedding_lookup
from gptjax.model.places import UNSHARDED, ModelSharding
from gptjax.model.projection import INIT_STD
from gptjax.model.rematerialisation import rematerialised

FROZEN_BLOCKS = "frozen_h"  # in a step: the first blocks' parameters, which are not trained
PADDING_LOGIT = -1e9  # keeps rows that only pad the table out of every softmax


class GPT(nn.Module):
    """A decoder-only transformer: GPT-2 by default, GPT-1 by five fields of its config.

    Radford et al. (2018, 2019). `features` is everything but the head; a loss that never forms all
    logits starts from it. Raises `ValueError` unless the tokens are integers [B, T] that fit in the
    context. Ids must be from 0 to n_vocab - 1. This is not checked, because values are unknown
    while a program is compiled; ids beyond the padded vocabulary give logits of nan.

    >>> cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100)
    >>> ids = jnp.array([[1, 2, 3]])
    >>> variables = GPT(cfg).init(jax.random.key(0), ids)
    >>> GPT(cfg).apply(variables, ids).shape
    (1, 3, 128)
    """

    cfg: ModelConfig
    split: ModelSharding = UNSHARDED
    """Inside a `shard_map`: how the given parameters are divided. Only for `features`."""

    def __call__(
        self, tokens_BT: ArrayLike, train: bool = False, documents_BT: ArrayLike | None = None
    ) -> Array:
        """Next-token logits: ids [B, T] to float32 [B, T, V], padding of the vocabulary masked."""
        x_BTD, head_VD = self.features(tokens_BT, train, documents_BT)
        return logits(x_BTD, head_VD, self.cfg.n_vocab or 0)

    @nn.compact
    def features(
        self,
        tokens_BT: ArrayLike,
        train: bool = False,
        documents_BT: ArrayLike | None = None,
        positions_BT: ArrayLike | None = None,
    ) -> tuple[Array, Array]:
        """The input of the head, [B, T, D], and the head itself, float32 [V, D].

        `train` needs a `dropout` key if any rate is above 0. A token sees only tokens with its own
        document number in `documents_BT`; positions continue across documents, unless
        `positions_BT` gives them. The parameters of the first blocks may lie apart, as
        `FROZEN_BLOCKS`: then the backward pass ends before the others.
        """
        cfg, split = self.cfg, self.split
        check_model(cfg)
        tokens_BT = integers("tokens_BT", tokens_BT)
        time = check_shapes(tokens_BT=tokens_BT)["T"]
        if time > cfg.n_ctx:
            raise ValueError(f"{time} tokens do not fit the context of {cfg.n_ctx}")
        if documents_BT is not None:
            documents_BT = integers("documents_BT", documents_BT)
        init = nn.initializers.normal(INIT_STD)
        rows = cfg.padded_vocab // split.tensor
        wte = nn.Embed(rows, cfg.n_embd, embedding_init=init, name="wte")
        wpe = nn.Embed(cfg.n_ctx, cfg.n_embd, embedding_init=init, name="wpe")

        # looked up in float32, so that gradients of frequent tokens add up in float32
        x_BTD = embedding_lookup(wte.embedding, tokens_BT, split)
        if positions_BT is None:
            places_BTD = wpe(jnp.arange(time))[None]
        else:
            places_BTD = wpe(integers("positions_BT", positions_BT))
        x_BTD = (x_BTD + places_BTD).astype(cfg.dtype)
        key = self.make_rng("dropout") if train and cfg.embd_pdrop else None
        x_BTD = ops.dropout(x_BTD, cfg.embd_pdrop, key)

        def layer(block: nn.Module, x_BTD: Array, documents_BT: Array | None) -> tuple[Array, None]:
            return block(x_BTD, train, documents_BT), None  # pyright: ignore[reportCallIssue]

        block = rematerialised(gathering_block(Block, cfg, split), cfg.remat, split)
        stacks = {"h": cfg.n_layer}
        if FROZEN_BLOCKS in self.variables.get("params", {}):
            frozen = len(jax.tree.leaves(self.variables["params"][FROZEN_BLOCKS])[0])
            stacks = {FROZEN_BLOCKS: frozen, "h": cfg.n_layer - frozen}
        for name, length in stacks.items():
            x_BTD, _ = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
                length=length,
                unroll=min(cfg.unroll, length),
            )(block(cfg, split, name=name), x_BTD, documents_BT)
        if cfg.final_norm:
            x_BTD = LayerNorm(cfg.bias, name="ln_f")(x_BTD)
        if cfg.tied_head:
            return x_BTD, wte.embedding
        return x_BTD, self.param("lm_head", init, (rows, cfg.n_embd))


def logits(x_BTD: ArrayLike, head_VD: ArrayLike, n_vocab: int) -> Array:
    """Score every token of the vocabulary: float32 [B, T, V], rows beyond `n_vocab` masked.

    >>> logits(jnp.ones((1, 1, 4)), jnp.ones((3, 4)), n_vocab=2).tolist()
    [[[4.0, 4.0, -1000000000.0]]]
    """
    x, head = floating("x_BTD", x_BTD), floating("head_VD", head_VD)
    check_shapes(x_BTD=x, head_VD=head)
    at_least(1, n_vocab=n_vocab)
    logits_BTV = _products_with_rows(x, head.astype(x.dtype))
    is_padding_V = jnp.arange(len(head)) >= n_vocab
    return jnp.where(is_padding_V[None, None], PADDING_LOGIT, logits_BTV)


def _products_with_rows(x_BTD: Array, head_VD: Array) -> Array:
    """Every product of a token and a row, with float32 sums: [B, T, V]."""
    sums = wide(x_BTD)

    def multiply(x_BTD: Array, head_VD: Array) -> Array:
        return jnp.einsum("btd,vd->btv", x_BTD, head_VD, preferred_element_type=sums)

    def sum_rows(x_BTD: Array, head_VD: Array) -> Array:
        return (x_BTD.astype(sums)[..., None, :] * head_VD.astype(sums)[None, None]).sum(-1)

    if x_BTD.dtype == sums or x_BTD.shape[0] * x_BTD.shape[1] > 1:
        return multiply(x_BTD, head_VD)
    # XLA for GPUs would write the whole head in float32 before its product with a single token; the
    # sums of one kernel read it as it is
    return lax.platform_dependent(x_BTD, head_VD, cpu=multiply, default=sum_rows)


def init_params(cfg: ModelConfig, key: Array) -> dict:
    """Draw float32 parameters: N(0, 0.02), residual projections narrower, norms 1, biases 0.

    >>> cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100)
    >>> sorted(init_params(cfg, jax.random.key(0)))
    ['h', 'ln_f', 'wpe', 'wte']
    """
    # cuDNN rejects a single token, and one small program draws layers in a loop
    plain = dataclasses.replace(cfg, attention="xla", unroll=1)
    params = dict(GPT(plain).init(key, jnp.zeros((1, 1), jnp.int32))["params"])
    if cfg.n_classes:
        state = jnp.zeros((1, cfg.n_embd))
        params["clf"] = ClassificationHead(cfg).init(jax.random.fold_in(key, 1), state)["params"]
    return params


def parameter_shapes(cfg: ModelConfig) -> dict:
    """The parameter tree as shapes and types, computed without allocating anything.

    >>> shapes = parameter_shapes(ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100))
    >>> shapes["h"]["ln_1"]["scale"]
    ShapeDtypeStruct(shape=(2, 8), dtype=float32)
    """
    return jax.tree.map(lambda shape: shape, _parameter_shapes(cfg))  # nobody changes another's


@cache
def _parameter_shapes(cfg: ModelConfig) -> dict:
    """A start asks several times, and each answer would take as long as tracing a forward pass."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))

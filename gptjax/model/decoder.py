"""The GPT as a decoder: it reads prompts into a cache, then one token a row at a time.

It computes what `GPT` computes, by the same blocks. The layers are separate arrays here and the
loop over them is written out, because a slice of a stack would be copied for every token.

Letters as in `gpt`: B rows, T time, D width, N layers, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from gptjax.base.tree import Tree, leaf_names
from gptjax.config import ModelConfig
from gptjax.model.cache import Cache, LayerCache
from gptjax.model.gpt import PADDING_LOGIT, logits
from gptjax.model.layers import Block, LayerNorm
from gptjax.model.parallel import embedding_lookup, gathered_over_fsdp, with_own_heads
from gptjax.model.places import TENSOR, UNSHARDED, ModelSharding
from gptjax.model.projection import TRANSPOSED

CUT_INTO_HEADS = frozenset({"attn/c_attn/bias", "attn/c_attn/lora_B"})
"""Leaves of a layer that are stored whole, and of which each device here has its own heads."""


def decoder_config(cfg: ModelConfig, dtype: str) -> ModelConfig:
    """The config of a model that decodes in `dtype` on any device, however it was trained.

    >>> decoder_config(ModelConfig(attention="cudnn"), "float32").attention
    'auto'
    """
    return dataclasses.replace(
        cfg, dtype=dtype, attention="auto", remat="none", float32_matmul="highest"
    )


def decoder_params(params: Tree, cfg: ModelConfig, split: ModelSharding = UNSHARDED) -> Tree:
    """The parameters of `GPT` as a decoder reads them: in the compute type, layer by layer.

    Kernels are transposed, `kernel_FD` as the head is: each output reads one line of memory. They
    are as they were where they are stored in parts over `fsdp`. Inside a `shard_map` of a divided
    model they are the parts of one device, and `c_attn` has the columns of its own heads.

    >>> from gptjax.model.gpt import init_params
    >>> cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100, dtype="float32")
    >>> layers = decoder_params(init_params(cfg, jax.random.key(0)), cfg)["h"]
    >>> len(layers), layers[0]["mlp"]["c_fc"]["kernel_FD"].shape
    (2, (32, 8))
    """
    params = jax.tree.map(lambda x: x.astype(cfg.dtype), params)

    def layer(n: int) -> Tree:
        own = with_own_heads(jax.tree.map(lambda x: x[n], params["h"]), split, cfg, "h/")
        return own if split.fsdp > 1 else _with_transposed_kernels(own)

    return {**params, "h": tuple(layer(n) for n in range(cfg.n_layer))}


def _with_transposed_kernels(tree: Tree) -> Tree:
    if not isinstance(tree, dict):
        return tree
    return {
        **{name: _with_transposed_kernels(x) for name, x in tree.items() if name != "kernel"},
        # of a tree that is placed in parts, this leaf may be absent
        **({TRANSPOSED: jax.tree.map(jnp.transpose, tree["kernel"])} if "kernel" in tree else {}),
    }


def decoder_specs(params: Tree, split: ModelSharding) -> Tree:
    """The place of every leaf that `decoder_params` returns, for `shard_map`.

    >>> params = {"h": ({"mlp": {"c_fc": {"kernel_FD": 0}}},)}
    >>> tuple(decoder_specs(params, ModelSharding(tensor=2))["h"][0]["mlp"]["c_fc"]["kernel_FD"])
    ('tensor', None)
    """

    def spec(name: str) -> PartitionSpec:
        layer, _, rest = name.removeprefix("h/").partition("/")
        if not layer.isdecimal():
            return PartitionSpec(*split.place(name))
        if rest in CUT_INTO_HEADS:
            heads = TENSOR if split.tensor > 1 else None
            return PartitionSpec(heads) if rest.endswith("bias") else PartitionSpec(None, heads)
        place = split.place(f"h/{rest.replace(TRANSPOSED, 'kernel')}")[1:]
        return PartitionSpec(*(reversed(place) if TRANSPOSED in rest else place))

    return jax.tree.map(spec, leaf_names(params))


def extend(
    cfg: ModelConfig, params: Tree, tokens_BT: Array, cache: Cache, split: ModelSharding = UNSHARDED
) -> tuple[Array, Cache]:
    """Read tokens: the input of the head for each, [B, T, D], and the cache with them.

    One token a row is read at the end of its row. Several are prompts for empty rows, and the
    caller sets `lengths_B` of those that are padded at the end. A token beyond the model's context
    means nothing, but is a number: what it leaves in the cache must not spoil later sequences.

    >>> from gptjax.model.cache import empty_cache
    >>> from gptjax.model.gpt import init_params
    >>> cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100, dtype="float32")
    >>> params, ids = decoder_params(init_params(cfg, jax.random.key(0)), cfg), jnp.array([[1, 2]])
    >>> x_BTD, cache = extend(cfg, params, ids, empty_cache(cfg, 1, cfg.n_ctx))  # a prompt
    >>> x_BTD, cache = extend(cfg, params, jnp.array([[3]]), cache)  # its next token
    >>> head_logits(cfg, params, x_BTD).shape, cache.lengths_B.tolist()
    ((1, 1, 128), [3])
    """
    time = tokens_BT.shape[1]
    positions_BT = cache.lengths_B[:, None] + jnp.arange(time)[None]
    top = {name: leaf for name, leaf in params.items() if name != "h"}
    top = gathered_over_fsdp(top, split, cfg)
    x_BTD = embedding_lookup(top["wte"]["embedding"], tokens_BT, split)
    x_BTD = (x_BTD + jnp.take(top["wpe"]["embedding"], positions_BT, axis=0, mode="clip")).astype(
        cfg.dtype
    )
    layers: list[LayerCache] = []
    for layer_params, layer_cache in zip(params["h"], cache.layers, strict=True):
        own = gathered_over_fsdp(layer_params, split, cfg, "h/")
        block: Any = Block(cfg, split).apply(
            {"params": own}, x_BTD, False, None, (layer_cache, cache.lengths_B)
        )
        x_BTD, new_cache = block
        layers.append(new_cache)
    if cfg.final_norm:
        x_BTD = LayerNorm(cfg.bias).apply({"params": top["ln_f"]}, x_BTD)
    assert isinstance(x_BTD, Array)
    return x_BTD, Cache(tuple(layers), cache.lengths_B + time)


def head_logits(
    cfg: ModelConfig, params: Tree, x_BTD: Array, split: ModelSharding = UNSHARDED
) -> Array:
    """Score every token of the vocabulary: float32 [B, T, V], whole on every device.

    >>> cfg = ModelConfig(n_layer=1, n_head=1, n_embd=4, n_ctx=8, n_vocab=2)
    >>> head_logits(cfg, {"wte": {"embedding": jnp.ones((128, 4))}}, jnp.ones((1, 1, 4))).shape
    (1, 1, 128)
    """
    name = "wte" if cfg.tied_head else "lm_head"
    (head_VD,) = jax.tree.leaves(gathered_over_fsdp({name: params[name]}, split, cfg))
    if split.tensor == 1:
        return logits(x_BTD, head_VD, cfg.n_vocab or 0)
    rows = len(head_VD)
    own_BTV = logits(x_BTD, head_VD, rows)
    logits_BTV = lax.all_gather(own_BTV, TENSOR, axis=2, tiled=True)
    is_padding_V = jnp.arange(logits_BTV.shape[2]) >= (cfg.n_vocab or 0)
    return jnp.where(is_padding_V[None, None], PADDING_LOGIT, logits_BTV)

"""Rematerialisation: what the backward pass of a block keeps, and what it computes again."""

from typing import Any

import flax.linen as nn
import jax

from gptjax.model.attention_products import ATTENDED
from gptjax.model.places import UNSHARDED, ModelSharding
from gptjax.model.projection import PRODUCT


def rematerialised(
    block: type[nn.Module], remat: str, split: ModelSharding = UNSHARDED
) -> type[nn.Module]:
    """`Block` whose backward pass keeps some arrays, by `remat`, and recomputes the others.

    Chen et al. (2016). `none` keeps everything; `dots` keeps the products and what the backward
    pass of attention needs, so norms, GELUs, dropout and sums are done twice; `block` keeps its
    input and what attention needs; `full` keeps only its input. Weights gathered over `fsdp` are
    never kept, so `none` means `dots` there. Raises `ValueError` for any other `remat`. Pass
    `train` by position.

    >>> from jax import numpy as jnp
    >>> from gptjax.config import ModelConfig
    >>> from gptjax.model.layers import Block
    >>> block = rematerialised(Block, "full")(ModelConfig(n_head=2, n_embd=8))
    >>> variables = block.init(jax.random.key(0), jnp.ones((1, 5, 8)), False)
    >>> block.apply(variables, jnp.ones((2, 3, 8)), False).shape
    (2, 3, 8)
    """
    if remat == "none" and split.fsdp > 1:
        remat = "dots"
    policies = jax.checkpoint_policies
    either, named = policies.save_from_both_policies, policies.save_only_these_names
    kept = {
        "dots": either(named(PRODUCT, ATTENDED), _is_cudnn_attention),
        "block": either(named(ATTENDED), _is_cudnn_attention),
        "full": policies.nothing_saveable,
    }
    if remat == "none":
        return block
    if remat not in kept:
        raise ValueError(f"remat is {remat!r}: expected none, {', '.join(kept)}")
    return nn.remat(block, policy=kept[remat], static_argnums=(2,), prevent_cse=False)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is cuDNN's forward kernel: output and softmax sums, which have no names."""
    return primitive.name.startswith("dot_product_attention_fwd")

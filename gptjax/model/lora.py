"""Low-rank adapters (LoRA) as trees of parameters: apart from their model, and merged into it.

Hu et al. (2021). `gptjax.model.layers.Projection` computes with adapters; nothing else needs them
once they are merged. Letters: N layers, D inputs, F outputs, R rank.
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from gptjax.base.tree import Tree, as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.model.trainable import adapter_names


def adapters_of(params: Tree, cfg: ModelConfig) -> Tree:
    """The leaves of a tree that a checkpoint with adapters holds: `adapter_names`.

    >>> from gptjax.model.gpt import parameter_shapes
    >>> cfg = ModelConfig(n_layer=2, n_embd=8, n_head=2, n_ctx=4, n_vocab=9, lora_rank=4)
    >>> adapters_of(parameter_shapes(cfg), cfg)["h"]["attn"]["c_attn"]["lora_A"].shape
    (2, 8, 4)
    """
    names = adapter_names(cfg)
    return as_tree({name: x for name, x in named_leaves(params).items() if name in names})


def with_adapters(base: Tree, adapters: Tree) -> Tree:
    """The parameters of a model with adapters; leaves of `adapters` replace those of the base.

    >>> with_adapters({"wpe": {"embedding": 1}}, {"clf": {"bias": 2}})
    {'wpe': {'embedding': 1}, 'clf': {'bias': 2}}
    """
    return as_tree({**named_leaves(base), **named_leaves(adapters)})


def unadapted(cfg: ModelConfig) -> ModelConfig:
    """The same model without adapters.

    >>> unadapted(ModelConfig(lora_rank=4)).lora_rank
    0
    """
    return replace(cfg, lora_rank=0)


def merged(params: Tree, cfg: ModelConfig) -> tuple[Tree, ModelConfig]:
    """A model without adapters that computes the same, and its config.

    A kernel becomes `kernel + A B alpha / R`, in float32 whatever the type of the leaves.

    >>> from gptjax.model.gpt import init_params
    >>> import jax
    >>> cfg = ModelConfig(n_layer=2, n_embd=8, n_head=2, n_ctx=4, n_vocab=9, lora_rank=4)
    >>> params, plain = merged(init_params(cfg, jax.random.key(0)), cfg)
    >>> sorted(params["h"]["attn"]["c_attn"]), plain.lora_rank
    (['bias', 'kernel'], 0)
    """
    named, kept = named_leaves(params), {}
    for name, x in named.items():
        module, _, last = name.rpartition("/")
        if last in ("lora_A", "lora_B"):
            continue
        if last == "kernel" and f"{module}/lora_A" in named:
            x = x + _product(named[f"{module}/lora_A"], named[f"{module}/lora_B"], cfg)
        kept[name] = x
    return as_tree(kept), unadapted(cfg)


def _product(a_NDR: Array, b_NRF: Array, cfg: ModelConfig) -> Array:
    """What an adapter adds to a stack of kernels: float32 [N, D, F]."""
    a, b = jnp.asarray(a_NDR, jnp.float32), jnp.asarray(b_NRF, jnp.float32)
    product = jnp.einsum("ndr,nrf->ndf", a, b, precision="highest")
    return product * (cfg.lora_alpha / cfg.lora_rank)

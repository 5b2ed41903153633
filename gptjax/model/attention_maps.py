"""Where one head of attention looks: its weights over a text, to look at rather than to train with.

Training never forms these weights for all layers at once, so a forward pass does not return them.
Here the blocks below the chosen layer run as they always do, and the chosen head's weights are
formed from the queries and keys of that layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from gptjax.config import ModelConfig
from gptjax.model.arguments import check_model, check_shapes, integers
from gptjax.model.attention import attend
from gptjax.model.decoder import decoder_config
from gptjax.model.layers import Block, LayerNorm
from gptjax.model.parallel import embedding_lookup
from gptjax.model.places import UNSHARDED
from gptjax.model.projection import Projection


def attention_map(
    cfg: ModelConfig, params: Any, tokens_BT: ArrayLike, layer: ArrayLike, head: ArrayLike
) -> Array:
    """The weights of one head, float32 [B, T, S]: how much query t looks at key s.

    Each row sums to 1 and is 0 after its own position. `params` is the tree of `init_params`.
    `layer` and `head` count from 0 and may be traced, so that one compiled program serves every
    head; jax takes the nearest one for numbers that do not exist. Padding on the right changes no
    row before it. Raises `ValueError` unless the tokens are integers that fit in the context.

    >>> from gptjax.model.gpt import init_params
    >>> cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=16, n_vocab=100)
    >>> params = init_params(cfg, jax.random.key(0))
    >>> attention_map(cfg, params, jnp.array([[1, 2]]), layer=0, head=1)[0, 0].tolist()
    [1.0, 0.0]
    """
    check_model(cfg)
    cfg = decoder_config(cfg, cfg.dtype)
    tokens_BT = integers("tokens_BT", tokens_BT)
    sizes = check_shapes(tokens_BT=tokens_BT)
    if sizes["T"] > cfg.n_ctx:
        raise ValueError(f"{sizes['T']} tokens do not fit the context of {cfg.n_ctx}")

    def of_layer(number: ArrayLike) -> Any:
        return jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, number, keepdims=False), params["h"]
        )

    def block(number: Array, x_BTD: Array) -> Array:
        return Block(cfg).apply({"params": of_layer(number)}, x_BTD)  # pyright: ignore

    x_BTD = embedding_lookup(params["wte"]["embedding"], tokens_BT, UNSHARDED)
    x_BTD = (x_BTD + params["wpe"]["embedding"][None, : sizes["T"]]).astype(cfg.dtype)
    x_BTD = lax.fori_loop(0, jnp.asarray(layer), block, x_BTD)

    chosen = of_layer(layer)
    if cfg.norm == "pre":
        x_BTD: Any = LayerNorm(cfg.bias).apply({"params": chosen["ln_1"]}, x_BTD)
    project = Projection(cfg, 3 * cfg.n_embd, cfg.qkv_bias)
    qkv_BTF: Any = project.apply({"params": chosen["attn"]["c_attn"]}, x_BTD)
    parts = qkv_BTF.reshape(*tokens_BT.shape, 3, cfg.n_head, cfg.head_dim)
    q_BT1K, k_BT1K = (
        lax.dynamic_slice_in_dim(parts[:, :, part], head, 1, axis=2) for part in (0, 1)
    )
    # values that are the unit vectors make attention return its weights
    units_BSHS = jnp.broadcast_to(
        jnp.eye(sizes["T"])[None, :, None], (sizes["B"], sizes["T"], 1, sizes["T"])
    )
    return attend(q_BT1K, k_BT1K, units_BSHS)[:, :, 0]

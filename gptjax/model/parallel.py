"""One model over several devices: the axes that divide each leaf, and the inverse collectives.

Rows of a batch are divided over the mesh axes `data` and `fsdp`; each device computes with its own.
Over `fsdp` every matrix is stored in parts and gathered where it is used (Rajbhandari et al. 2020,
stage 3), so that weights move and activations stay. Over `tensor` the heads, the MLP's width and
the vocabulary are divided and stay so (Shoeybi et al. 2019): a block's first product enters the
divided part, its second sums what the devices have and leaves it. All of this is written for a
`shard_map` in which every axis is manual.

Letters as in `gpt`: D width, F MLP width, H heads, K head dim, V vocabulary.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from gptjax.base.tree import Tree, leaf_names
from gptjax.config import ModelConfig
from gptjax.model.arguments import check_shapes, floating, integers
from gptjax.model.places import FSDP, TENSOR, UNSHARDED, ModelSharding


def gathered(params: Tree, split: ModelSharding, cfg: ModelConfig, prefix: str = "") -> Tree:
    """The parameters that a device computes with: whole along `fsdp`, its part along `tensor`.

    `prefix` names the tree that `params` belongs to; below `h/` a layer's leaves no longer have a
    layer axis.

    >>> gathered({"scale": jnp.ones(2)}, UNSHARDED, ModelConfig(), "h/ln_1/")["scale"].tolist()
    [1.0, 1.0]
    """
    return with_own_heads(gathered_over_fsdp(params, split, cfg, prefix), split, cfg, prefix)


def gathered_over_fsdp(
    params: Tree, split: ModelSharding, cfg: ModelConfig, prefix: str = ""
) -> Tree:
    """The first half of `gathered`: whole along `fsdp`.

    >>> gathered_over_fsdp({"scale": jnp.ones(2)}, UNSHARDED, ModelConfig())["scale"].tolist()
    [1.0, 1.0]
    """

    def gather(name: str, x: Array) -> Array:
        place = _place(split, prefix, name)
        return all_gather(x, FSDP, place.index(FSDP), cfg.dtype) if FSDP in place else x

    return params if split.fsdp == 1 else jax.tree.map(gather, leaf_names(params), params)


def with_own_heads(params: Tree, split: ModelSharding, cfg: ModelConfig, prefix: str = "") -> Tree:
    """The second half of `gathered`: of `c_attn`, the columns of the heads that are here.

    >>> params = {"scale": jnp.ones(2)}
    >>> with_own_heads(params, UNSHARDED, ModelConfig(), "h/ln_1/")["scale"].tolist()
    [1.0, 1.0]
    """

    def cut(name: str, x: Array) -> Array:
        if not re.fullmatch(r"h/attn/c_attn/(kernel|bias|lora_B)", prefix + name):
            return x
        return _own_heads(x, _place(split, prefix, name), split, cfg)

    return params if split.tensor == 1 else jax.tree.map(cut, leaf_names(params), params)


def _place(split: ModelSharding, prefix: str, name: str) -> tuple[str | None, ...]:
    place = split.place(prefix + name)
    return place[1:] if prefix == "h/" else place


def _own_heads(
    x: Array, place: tuple[str | None, ...], split: ModelSharding, cfg: ModelConfig
) -> Array:
    """Query, key and value of this device's heads, [..., 3 D] to [..., 3 D / tensor].

    GPT-2 stores the three side by side, so a device's part of the last dimension does not match its
    heads: the parts are gathered first.
    """
    if TENSOR in place:
        x = all_gather(x, TENSOR, x.ndim - 1, cfg.dtype)
    else:
        x = lax.pcast(x, TENSOR, to="varying")
    own = cfg.n_head // split.tensor
    x = x.reshape(*x.shape[:-1], 3, cfg.n_head, cfg.head_dim)
    x = lax.dynamic_slice_in_dim(x, lax.axis_index(TENSOR) * own, own, axis=-2)
    return x.reshape(*x.shape[:-3], 3 * own * cfg.head_dim)


def param_specs(params: Tree, split: ModelSharding) -> Tree:
    """The place of every parameter, for `shard_map` and for placement.

    >>> params, split = {"wte": {"embedding": jnp.ones((128, 8))}}, ModelSharding(fsdp=2, tensor=2)
    >>> tuple(param_specs(params, split)["wte"]["embedding"])
    ('tensor', 'fsdp')
    """
    return jax.tree.map(lambda name: PartitionSpec(*split.place(name)), leaf_names(params))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def all_gather(part: Array, axis: str, dimension: int, dtype: Any) -> Array:
    """Join the parts of all devices along `axis`, in float32 like `part`.

    They travel in `dtype`, in which the products are computed anyway. The gradient's parts are
    added up in float32, each on the device that stores it.

    >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> gather = lambda x: all_gather(x, "fsdp", 0, "bfloat16")
    >>> place = PartitionSpec("fsdp")
    >>> jax.shard_map(gather, mesh=mesh, in_specs=place, out_specs=place)(jnp.ones(4)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    whole = lax.all_gather(part.astype(dtype), axis, axis=dimension, tiled=True)
    return whole.astype(part.dtype)


def _all_gather_forward(part: Array, axis: str, dimension: int, dtype: Any):
    return all_gather(part, axis, dimension, dtype), None


def _all_gather_backward(axis: str, dimension: int, dtype: Any, _: None, dwhole: Array):
    del dtype
    return (lax.psum_scatter(dwhole, axis, scatter_dimension=dimension, tiled=True),)


all_gather.defvjp(_all_gather_forward, _all_gather_backward)


def copy_to_tensor(x: Array, split: ModelSharding) -> Array:
    """Give every device along `tensor` its own copy of `x`; their gradients are added up.

    >>> copy_to_tensor(jnp.float32(2), UNSHARDED).item()  # one device: nothing to do
    2.0
    """
    return lax.pcast(x, TENSOR, to="varying") if split.tensor > 1 else x


def sum_over_tensor(x: Array, split: ModelSharding) -> Array:
    """Sum `x` over the devices along `tensor`.

    >>> sum_over_tensor(jnp.float32(2), UNSHARDED).item()
    2.0
    """
    return lax.psum(x, TENSOR) if split.tensor > 1 else x


def first_row(rows: int, split: ModelSharding) -> Array | int:
    """The first row of this device's part of the vocabulary, if each device has `rows` rows.

    >>> first_row(128, UNSHARDED)
    0
    """
    return lax.axis_index(TENSOR) * rows if split.tensor > 1 else 0


def embedding_lookup(
    table_VD: ArrayLike, tokens_BT: ArrayLike, split: ModelSharding = UNSHARDED
) -> Array:
    """Rows of a table whose vocabulary is divided over `tensor`: [B, T] to [B, T, D].

    Ids are not checked. Without a division, ids beyond the table give rows of nan, and negative ids
    count from its end.

    >>> embedding_lookup(jnp.eye(3), jnp.array([[2, 0]])).tolist()
    [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    """
    table_VD, tokens_BT = floating("table_VD", table_VD), integers("tokens_BT", tokens_BT)
    check_shapes(table_VD=table_VD, tokens_BT=tokens_BT)
    if split.tensor == 1:
        return jnp.take(table_VD, tokens_BT, axis=0)
    rows = table_VD.shape[0]
    own_BT = tokens_BT - first_row(rows, split)
    is_own_BT1 = ((own_BT >= 0) & (own_BT < rows))[..., None]
    x_BTD = jnp.take(table_VD, own_BT, axis=0, mode="clip")
    return lax.psum(jnp.where(is_own_BT1, x_BTD, 0.0), TENSOR)

"""The rule of an optimizer: it turns gradients into a direction, before decay and learning rate.

`UPDATE_RULES` is the table behind `optim.name`. The elements of every direction have about one
size, whatever the size of the gradients; the learning rate multiplies them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gptjax.base.tree import Tree, leaf_names
from gptjax.config import OptimConfig
from gptjax.model.places import is_block_matrix

MUON_RMS = 0.2  # RMS of AdamW's updates in Liu et al. 2025
ADAFACTOR_MAX_RMS = 1.0  # Shazeer and Stern 2018


def adamw(cfg: OptimConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015); the chain adds the decay (Loshchilov and Hutter 2019)."""
    return _stored(cfg, optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps))


def lion(cfg: OptimConfig) -> optax.GradientTransformation:
    """The sign of an interpolated momentum, one moment only (Chen et al. 2023).

    Every element moves by the whole learning rate, several times AdamW's RMS: the paper takes a
    peak 3 to 10 times lower, a decay as much higher, and betas of 0.9 and 0.99.
    """
    return _stored(cfg, optax.scale_by_lion(b1=cfg.beta1, b2=cfg.beta2))


def adafactor(cfg: OptimConfig) -> optax.GradientTransformation:
    """A second moment as row and column means, no first moment (Shazeer and Stern 2018).

    Matrices of at least 128 by 128 are factored, and every direction is clipped to RMS 1, each
    layer of a stack alone. The paper's steps relative to the parameters' size are left out: the
    learning rate is the schedule's. Betas and eps are not read. Neither is `moments_dtype`: the
    statistics are small, and decaying by 1 - t^-0.8 they would soon stand still in bfloat16.
    """
    del cfg
    return optax.chain(optax.scale_by_factored_rms(), optax.stateless(_clip_rms))


def muon(cfg: OptimConfig) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum for the blocks' matrices (Jordan et al. 2024), else AdamW.

    Each layer's matrix of a stacked kernel [N, in, out] is orthogonalised alone, by five
    Newton-Schulz steps. An orthogonal matrix has RMS 1 / sqrt(max(in, out)). Multiplied by
    0.2 sqrt(max(in, out)) it has the RMS of AdamW's updates, so AdamW's learning rate and decay
    serve both (Liu et al. 2025, "Muon is Scalable for LLM Training"). The momentum decays by
    `muon_momentum`; betas and eps belong to the AdamW beside it.
    """
    orthogonalise = optax.contrib.scale_by_muon(
        beta=cfg.muon_momentum, weight_dimension_numbers=_stacked_matrices
    )
    for_matrices = optax.chain(_stored(cfg, orthogonalise), optax.stateless(_resize))
    return optax.partition({"muon": for_matrices, "adamw": adamw(cfg)}, _groups)


UPDATE_RULES: dict[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}


def _stored(cfg: OptimConfig, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep the moments of `inner` in `cfg.moments_dtype` between steps, compute in float32.

    Rounding to bfloat16's 8 bits loses any change of less than 1 part in 256: moments that decay
    by 0.99 a step follow their gradients, but moments that decay by 0.999 would stand still.
    """
    if cfg.moments_dtype == "float32":
        return inner

    def cast(state: optax.OptState, dtype: str) -> optax.OptState:
        # only arrays shaped like the parameters: not counts, nor Muon's coefficients
        return optax.tree_map_params(inner, lambda moment: moment.astype(dtype), state)

    def init(params: Tree) -> optax.OptState:
        return cast(inner.init(params), cfg.moments_dtype)

    def update(updates: Tree, state: optax.OptState, params: Tree = None):
        updates, state = inner.update(updates, cast(state, "float32"), params)
        return updates, cast(state, cfg.moments_dtype)

    return optax.GradientTransformation(init, update)


def _groups(params: Tree) -> Tree:
    return jax.tree.map(
        lambda name: "muon" if is_block_matrix(name) else "adamw", leaf_names(params)
    )


def _stacked_matrices(updates: Tree) -> Tree:
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(lambda _: numbers, updates)


def _resize(updates: Tree, params: Tree = None) -> Tree:
    del params
    return jax.tree.map(
        lambda update: MUON_RMS * math.sqrt(max(update.shape[1:])) * update, updates
    )


def _clip_rms(updates: Tree, params: Tree = None) -> Tree:
    del params

    def clipped(name: str, update: Array) -> Array:
        own_axes = tuple(range(name.startswith("h/"), update.ndim))
        rms = jnp.sqrt(jnp.square(update).mean(own_axes, keepdims=True))
        return update / jnp.maximum(1.0, rms / ADAFACTOR_MAX_RMS)

    return jax.tree.map(clipped, leaf_names(updates), updates)

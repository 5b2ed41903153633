"""The optimizer as one Optax chain: clip, Adam, masked decay, schedule; accumulated by MultiSteps.

`optax.MultiSteps` runs its inner optimizer on every micro-step and throws the result away on all
but the last, the collective with it. The inner chain therefore sits behind a gate
(`on_last_micro_step`): gradients cross the network, and Adam runs, once per update.
"""

import jax
import optax
from jax import Array, lax

from gptjax.config import OptimConfig
from gptjax.tree import Tree, leaf_names, mask_by_name

DECAYED = (r".*/kernel", r".*/embedding", r"lm_head")
NOT_DECAYED = (r".*/bias", r".*/scale")


def decay_mask(params: Tree) -> Tree:
    """True for matrices, False for biases and norms; every leaf is matched by name."""
    return mask_by_name(params, yes=DECAYED, no=NOT_DECAYED)


def decay_table(params: Tree) -> list[tuple[str, tuple[int, ...], bool]]:
    """Every leaf as (name, shape, is it decayed), for people to check."""
    leaves = zip(
        jax.tree.leaves(leaf_names(params)),
        jax.tree.leaves(params),
        jax.tree.leaves(decay_mask(params)),
        strict=True,
    )
    return [(name, leaf.shape, decayed) for name, leaf, decayed in leaves]


def learning_rate_schedule(cfg: OptimConfig, max_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine to `final_lr`, where it stays.

    Update i of w warm-up updates has rate `peak (i + 1) / (w + 1)`: unlike a warm-up from zero, the
    first update learns. A run shorter than its warm-up never leaves it.
    """
    end = max_steps if cfg.decay_steps is None else cfg.decay_steps
    return optax.warmup_cosine_decay_schedule(
        init_value=cfg.peak_lr / (cfg.warmup_steps + 1),
        peak_value=cfg.peak_lr,
        warmup_steps=cfg.warmup_steps,
        decay_steps=max(end, cfg.warmup_steps + 1),
        end_value=cfg.final_lr,
    )


def make_optimizer(cfg: OptimConfig, max_steps: int) -> optax.GradientTransformation:
    """The chain of one update, for gradients that are already averaged over all devices.

    Clipping at the global norm (Pascanu et al. 2013), Adam (Kingma and Ba 2015), decay decoupled
    from it (Loshchilov and Hutter 2019) but scaled by the learning rate. An update with any
    gradient that is not finite is skipped: parameters, moments and schedule stay as they were.
    """
    clip = optax.identity() if cfg.clip_norm is None else optax.clip_by_global_norm(cfg.clip_norm)
    chain = optax.chain(
        optax.snapshot("grad_norm", optax.tree.norm),  # before clipping, as it is to be logged
        clip,
        optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(cfg, max_steps)),
    )
    # never give up skipping: beyond its limit apply_if_finite would let the NaN in
    return optax.apply_if_finite(chain, max_consecutive_errors=2**31 - 1)


def on_last_micro_step(
    inner: optax.GradientTransformation, axis: str
) -> optax.GradientTransformationExtraArgs:
    """Average over `axis` and run `inner` only where `emit` is true; else emit zeros.

    `emit` must be the same on all devices, or the collective inside deadlocks.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: Tree, params: Tree = None, *, emit: Array, **extra: Tree):
        def last():
            return inner.update(lax.pmean(updates, axis), state, params, **extra)

        def earlier():  # zeros like params, which are invariant over the axis; updates are not
            return optax.tree.zeros_like(params), state

        return lax.cond(emit, last, earlier)

    # pyright does not know that extra arguments may be required
    return optax.GradientTransformationExtraArgs(inner.init, update)  # pyright: ignore


def accumulate(
    inner: optax.GradientTransformation, micro_steps: int, axis: str
) -> optax.MultiSteps:
    """Average gradients over `micro_steps` and devices, then apply `inner`, once."""
    return optax.MultiSteps(on_last_micro_step(inner, axis), every_k_schedule=micro_steps)

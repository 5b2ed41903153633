"""The learning rate as a function of accepted steps: a warm-up, then one of a few shapes."""

import optax

from gptjax.config import OptimConfig


def learning_rate_schedule(cfg: OptimConfig, max_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then `cfg.schedule` down to `final_lr`, where it stays.

    Step i of w warm-up steps has rate `peak (i + 1) / (w + 1)`: unlike a warm-up from zero, the
    first step learns. A run shorter than its warm-up never leaves it. Every shape starts at the
    peak with step w and would reach `final_lr` with the first step after the schedule's end:

    - cosine: half a period (Loshchilov and Hutter 2017);
    - linear: a straight line (Defazio et al. 2023);
    - wsd: flat, then a straight line over the last `cooldown_fraction` of the whole schedule, so
      that its length is free until the cooldown starts (Hu et al. 2024, Hägele et al. 2024). The
      warm-up may shorten the cooldown; with no cooldown the rate stays at the peak.
    """
    end = max_steps if cfg.decay_steps is None else cfg.decay_steps
    end = max(end, cfg.warmup_steps + 1)
    length = end - cfg.warmup_steps
    warm_up = optax.linear_schedule(
        cfg.peak_lr / (cfg.warmup_steps + 1), cfg.peak_lr, cfg.warmup_steps
    )
    if cfg.schedule == "wsd":
        cooldown = min(round(cfg.cooldown_fraction * end), length)
        flat = optax.constant_schedule(cfg.peak_lr)
        return optax.join_schedules(
            [warm_up, flat, _line(cfg, cooldown)], [cfg.warmup_steps, end - cooldown]
        )
    down = _line(cfg, length) if cfg.schedule == "linear" else _cosine(cfg, length)
    return optax.join_schedules([warm_up, down], [cfg.warmup_steps])


def _line(cfg: OptimConfig, length: int) -> optax.Schedule:
    return optax.linear_schedule(cfg.peak_lr, cfg.final_lr, length)


def _cosine(cfg: OptimConfig, length: int) -> optax.Schedule:
    final_share = cfg.final_lr / cfg.peak_lr if cfg.peak_lr else 0.0
    return optax.cosine_decay_schedule(cfg.peak_lr, length, alpha=final_share)

"""The learning rate as a function of accepted steps: a warm-up, then one of a few shapes."""

import optax

from gptjax.config import OptimConfig
from gptjax.config.courses import cooldown_steps, schedules


def learning_rate_schedule(cfg: OptimConfig, max_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then `cfg.schedule` down to `final_lr`, where it stays.

    Step i of w warm-up steps has rate `peak (i + 1) / (w + 1)`: unlike a warm-up from zero, the
    first step learns. A run shorter than its warm-up never leaves it. Every shape starts at the
    peak in step w and would reach `final_lr` in the first step after the schedule's end:

    - cosine: half a period (Loshchilov and Hutter 2017);
    - linear: a straight line (Defazio et al. 2023);
    - wsd: flat, then a straight line over the last `cooldown_fraction` of the whole schedule, so
      that its length is free until the cooldown starts (Hu et al. 2024, Hägele et al. 2024). The
      warm-up may shorten the cooldown; with no cooldown the rate stays at the peak.

    Each of `cfg.rewarm_steps` ends one such schedule and begins the next. Its warm-up rises from
    the last rate to the peak (Ibrahim et al. 2024).
    """
    parts, rate = [], 0.0
    for begin, end in schedules(cfg, max_steps):
        part, rate = _warm_up_and_decay(cfg, end - begin, rate)
        parts.append(part)
    return optax.join_schedules(parts, cfg.rewarm_steps)


def _warm_up_and_decay(cfg: OptimConfig, length: int, rate: float) -> tuple[optax.Schedule, float]:
    """A schedule of `length` steps that begins at `rate`; returns it and its last rate."""
    length = max(length, cfg.warmup_steps + 1)
    left = length - cfg.warmup_steps
    first = rate + (cfg.peak_lr - rate) / (cfg.warmup_steps + 1)
    warm_up = optax.linear_schedule(first, cfg.peak_lr, cfg.warmup_steps)
    if cfg.schedule == "wsd":
        cooldown = min(cooldown_steps(cfg, length), left)
        flat = optax.constant_schedule(cfg.peak_lr)
        pieces = [warm_up, flat, _line(cfg, cooldown)]
        whole = optax.join_schedules(pieces, [cfg.warmup_steps, length - cooldown])
        return whole, cfg.final_lr if cooldown else cfg.peak_lr
    down = _line(cfg, left) if cfg.schedule == "linear" else _cosine(cfg, left)
    return optax.join_schedules([warm_up, down], [cfg.warmup_steps]), cfg.final_lr


def _line(cfg: OptimConfig, length: int) -> optax.Schedule:
    return optax.linear_schedule(cfg.peak_lr, cfg.final_lr, length)


def _cosine(cfg: OptimConfig, length: int) -> optax.Schedule:
    final_share = cfg.final_lr / cfg.peak_lr if cfg.peak_lr else 0.0
    return optax.cosine_decay_schedule(cfg.peak_lr, length, alpha=final_share)

"""The steps at which learning-rate schedules begin and end, and schedules that do not fit a run.

These rules are not applied to a config that was trained before: its run can be read and resumed.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from gptjax.config.schema import Config, OptimConfig


def schedule_end(optim: OptimConfig, max_steps: int) -> int:
    """The step at which the last schedule of a run of `max_steps` steps ends."""
    return max_steps if optim.decay_steps is None else optim.decay_steps


def schedules(optim: OptimConfig, max_steps: int) -> list[tuple[int, int]]:
    """The first step, from 0, of every schedule of a run, and the step at which it ends.

    >>> schedules(OptimConfig(rewarm_steps=(100,)), max_steps=300)
    [(0, 100), (100, 300)]
    """
    return list(pairwise([0, *optim.rewarm_steps, schedule_end(optim, max_steps)]))


def cooldown_steps(optim: OptimConfig, length: int) -> int:
    """Steps at the end of a wsd schedule of `length` steps in which the rate falls."""
    return round(optim.cooldown_fraction * length)


def warmup_steps(optim: OptimConfig, max_steps: int) -> int:
    """Steps of the warm-up, given as a number or as a share of all steps.

    >>> warmup_steps(OptimConfig(warmup_fraction=0.1), max_steps=300)
    30
    """
    if optim.warmup_fraction is None:
        return optim.warmup_steps
    return round(optim.warmup_fraction * max_steps)


def misfits(c: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every warm-up, cooldown and ramp that does not fit: its fields, and a message."""
    o, t = c.optim, c.train
    o = replace(o, warmup_steps=warmup_steps(o, t.max_steps))
    ends = [(t.max_steps, "train.max_steps")]
    if o.decay_steps is not None:
        ends.append((o.decay_steps, "optim.decay_steps"))
    stops = [*((step, "optim.rewarm_steps") for step in o.rewarm_steps), min(ends)]
    for (begin, end), (stop, field) in zip(schedules(o, t.max_steps), stops, strict=True):
        cooldown = cooldown_steps(o, end - begin) if o.schedule == "wsd" else 0
        if stop <= begin:
            yield (
                ("optim.rewarm_steps", field),
                f"optim.rewarm_steps must increase, and end before the schedule and the run end: "
                f"{begin} is not before {field} {stop}",
            )
        elif o.warmup_steps > stop - begin:
            yield (
                ("optim.warmup_steps", field),
                f"optim.warmup_steps {o.warmup_steps} is longer than the {stop - begin} steps from "
                f"step {begin} to {field} {stop}: take at most {stop - begin}",
            )
        elif o.warmup_steps + cooldown > end - begin:
            yield (
                ("optim.warmup_steps", "optim.cooldown_fraction", field),
                f"optim.warmup_steps {o.warmup_steps} and a cooldown of {cooldown} steps "
                f"(optim.cooldown_fraction {o.cooldown_fraction}) are longer than the "
                f"{end - begin} steps of the schedule: shorten one of them",
            )
    if t.ramp_steps > t.max_steps:
        yield (
            ("train.ramp_steps", "train.max_steps"),
            f"train.ramp_steps {t.ramp_steps} is longer than the run, train.max_steps "
            f"{t.max_steps}: the batch would never reach its full size",
        )

"""The size of each step's batch: constant, or doubling in equal stages at the start of training.

Small batches learn more from a token at first, when gradients agree with one another; Brown et al.
(2020, appendix B) ramp linearly for that reason. Doubling needs only a few compiled programs. The
size depends only on the step, and so does the position in the data.
"""

import math
from typing import NamedTuple

from gptjax.config.schema import Config


class BatchSchedule(NamedTuple):
    """Rows of every step: they double from `first` to `final` in `steps` steps.

    >>> ramp = BatchSchedule(first=16, final=64, steps=100)
    >>> [ramp.rows(step) for step in (0, 49, 50, 99, 100)], ramp.rows_before(60)
    ([16, 16, 32, 32, 64], 1120)
    """

    first: int
    final: int
    steps: int

    @property
    def stages(self) -> int:
        """Sizes before the final one."""
        return (self.final // self.first).bit_length() - 1

    def rows(self, step: int) -> int:
        """Rows of step `step`, counted from 0."""
        if step >= self.steps:
            return self.final
        return self.first << (step * self.stages // self.steps)

    def rows_before(self, step: int) -> int:
        """Rows of all steps before `step`."""
        total = max(0, step - self.steps) * self.final
        for stage in range(self.stages):
            begin, end = (-(-k * self.steps // self.stages) for k in (stage, stage + 1))
            total += max(0, min(step, end) - begin) * (self.first << stage)
        return total

    def sizes(self) -> list[int]:
        """Every number of rows that a step ever has, smallest first.

        A ramp of fewer steps than doublings leaves some sizes out.
        """
        begins = [-(-k * self.steps // self.stages) for k in range(self.stages)]
        return sorted({self.final, *map(self.rows, begins)})


def batch_schedule(config: Config) -> BatchSchedule:
    """The ramp of a config; it has no steps if `train.ramp_from_tokens` is None."""
    final, train = config.batch_rows, config.train
    if train.ramp_from_tokens is None:
        return BatchSchedule(final, final, 0)
    return BatchSchedule(train.ramp_from_tokens // config.context, final, train.ramp_steps)


def rows_problem(config: Config, groups: int) -> str | None:
    """The reason why the smallest batch cannot be divided among groups of devices, or None."""
    rows, train = batch_schedule(config).first, config.train
    if rows % groups == 0:
        return None
    fitting = math.lcm(1 if train.micro_batch == "auto" else train.micro_batch, groups)
    if train.batch_rows is not None:
        return (
            f"train.batch_rows {rows} does not divide among {groups} groups of devices (mesh.data "
            f"x mesh.fsdp): try {math.ceil(rows / groups) * groups}"
        )
    name = "batch_tokens" if train.ramp_from_tokens is None else "ramp_from_tokens"
    return (
        f"train.{name} {rows * config.context} is {rows} sequences of {config.context} tokens, "
        f"which do not divide among {groups} groups of devices (mesh.data x mesh.fsdp): try "
        f"{math.ceil(rows / fitting) * fitting * config.context}"
    )

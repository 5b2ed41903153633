"""What a change of settings does to a run that resumes, in numbers."""

import math

import numpy as np

from gptjax.config import Config
from gptjax.config.courses import schedule_end
from gptjax.config.origins import as_words, flag_of
from gptjax.config.run_batches import RunBatches
from gptjax.training.schedules import learning_rate_schedule

COURSE = ["peak_lr", "final_lr", "schedule", "warmup_steps", "cooldown_fraction", "rewarm_steps"]


def course_change(old: Config, new: Config, step: int, accepted: int) -> str | None:
    """A note on the old and new learning rate after step `step`, and the flags that keep the old.

    None if neither the rate nor the end of the schedule has changed.
    """
    before, now = (
        np.asarray(learning_rate_schedule(c.optim, c.train.max_steps)(accepted)).item()
        for c in (old, new)
    )
    end, new_end = (schedule_end(c.optim, c.train.max_steps) for c in (old, new))
    if math.isclose(before, now, rel_tol=1e-3) and end == new_end:
        return None
    words = f"the learning rate of step {step + 1} was {before:.4g}, now it is {now:.4g}"
    if before and not math.isclose(before, now, rel_tol=1e-3):
        words += f", {now / before:.4g} times as high"
    if end != new_end:
        words += f"; its schedule ended with step {end}, now with step {new_end}"
    if new.optim.rewarm_steps and not old.optim.rewarm_steps:  # the user wants this jump
        return words
    kept = [
        f"{flag_of(f'optim.{name}')} {as_words(getattr(old.optim, name))}"
        for name in COURSE
        if getattr(old.optim, name) != getattr(new.optim, name)
    ]
    kept += [f"--optim.decay-steps {end}"] if end != new_end else []
    return f"{words}. To keep the old schedule: {' '.join(kept)}"


def batch_change(before: RunBatches, now: RunBatches, config: Config, step: int) -> str | None:
    """A note on the old and new batch after step `step`, and the tokens of the whole run.

    None if the schedule of the batches is the same.
    """
    if before.schedule == now.schedule:
        return None
    context, steps = config.context, config.train.max_steps
    batch, new_batch = (run.rows(step) * context for run in (before, now))
    tokens, new_tokens = (run.rows_before(steps) * context for run in (before, now))
    return (
        f"the batch of step {step + 1} was {batch:,} tokens, now it is {new_batch:,}; {steps:,} "
        f"steps read {new_tokens:,} tokens in all, with the old batch {tokens:,}. The data go on "
        f"after the {now.rows_before(step) * context:,} tokens that were read"
    )

"""A run that saves, as a side: its train step, and checkpoints written while it goes on.

`steps` builds a side for `worker.py`: it returns a round and a dict of facts.
"""

import statistics
import time
from pathlib import Path

import jax
from harness import Figures, Round
from shapes import Shape, model_config
from step_side import TrainStep

from gptjax.cluster.compiler import keep_freed_memory
from gptjax.model.size import parameter_count
from gptjax.runs.checkpoint import Checkpointer
from gptjax.training.state import saved_items

WARM = 2


def steps(shape: dict, directory: str, others: int) -> tuple[Round, dict]:
    """A save a round: the seconds that it blocks the loop, and those of a step while it is written.

    Before it there are so many `others`, with nothing being written.
    """
    keep_freed_memory(parameter_count(model_config(Shape(**shape))))  # as the train verb does
    step = TrainStep(Shape(**shape))
    checkpointer = Checkpointer(Path(directory) / "checkpoints", keep_latest=1)
    step.run(WARM)
    number = 0

    def save() -> float:
        nonlocal number
        number += 1
        started = time.perf_counter()
        checkpointer.save(number, saved_items(step.state), {}, {"data": "", "val_loss": None})
        return time.perf_counter() - started

    def one_round() -> Figures:
        alone = [step.run(1) for _ in range(others)]
        began = time.perf_counter()
        blocked, meanwhile = save(), []
        while checkpointer.is_saving:
            meanwhile.append(step.run(1))
            checkpointer.poll()
        return {
            "seconds": blocked,
            "alone": statistics.median(alone),
            "meanwhile": statistics.mean(meanwhile),
            "steps": len(meanwhile),
            "until_safe": time.perf_counter() - began,
        }

    save()
    checkpointer.wait()
    step.run(1)  # the first after a save allocates what the save holds
    return one_round, {"bytes": sum(x.nbytes for x in jax.tree.leaves(step.state))}

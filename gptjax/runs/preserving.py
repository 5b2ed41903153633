"""Which checkpoints stay when a new one is written: each reason to keep one is a policy of its own.

A checkpoint is deleted if no policy preserves it: first by a rename, so that a kill leaves it whole
or gone, and then in the background.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from gptjax.cluster.agreement import is_process_0
from gptjax.runs.holding import held_steps
from gptjax.runs.ranking import Ranking

DISCARDED = ".discarded"  # beside the steps: those that no policy preserves


def empty_discarded(checkpoints: Path) -> None:
    """Delete what was discarded, in the background; process 0 does it for all."""
    discarded = checkpoints / DISCARDED
    if is_process_0() and discarded.exists():
        Thread(target=shutil.rmtree, args=(discarded, True), daemon=True).start()


class Preserved(PreservationPolicy):
    """Keep those of the steps that `chosen` returns when it is given all of them."""

    def __init__(self, chosen: Callable[[list[int]], Collection[int | None]]):
        self._chosen = chosen

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Decide for each of `checkpoints`, oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self._chosen(steps)
        return [step in kept for step in steps]


def preservation(
    latest: int,
    every_steps: int,
    ranking: Callable[[], Ranking],
    run: Path,
    keeps_all: Callable[[], bool],
) -> PreservationPolicy:
    """Keep a step for any of these reasons.

    It is one of the `latest`; its number is a multiple of `every_steps` (0: no step is kept for
    that); it is the best, or of unknown measure and may be the best; adapters on this model have
    marked in its `run` that they need it; or `keeps_all` is true now.
    """
    policies = [
        LatestN(latest),
        Preserved(lambda _: {ranking().best(), *ranking().unknown()}),
        Preserved(lambda _: held_steps(run)),
        Preserved(lambda steps: steps if keeps_all() else ()),
    ]
    if every_steps:
        policies.append(EveryNSteps(every_steps))
    return AnyPreservationPolicy(policies)

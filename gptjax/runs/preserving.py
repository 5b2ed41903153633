"""Which checkpoints stay when a new one is written: each reason to keep one is a policy of its own.

A checkpoint is deleted if no policy preserves it: first by a rename, so that a kill leaves it whole
or gone, and then in the background.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
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


class Discarded:
    """The steps that no policy preserves; process 0 deletes them for all, in the background."""

    def __init__(self, checkpoints: Path):
        self._place = checkpoints / DISCARDED
        self._threads: list[Thread] = []

    def empty(self) -> None:
        """Begin to delete what is there."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if is_process_0() and (steps := list(self._place.glob("*"))):
            # a daemon, since a disk that hangs must not keep a process that is told to leave
            self._threads.append(Thread(target=_delete, args=(steps,), daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Wait until the disk has its room back."""
        for thread in self._threads:
            thread.join()
        with suppress(OSError):  # it is not there, or another process has removed it
            self._place.rmdir()


def _delete(steps: Sequence[Path]) -> None:
    for step in steps:
        shutil.rmtree(step, ignore_errors=True)


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

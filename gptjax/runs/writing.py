"""Writes a checkpoint beside a train step, which it shall slow as little as it can.

Arrays are not compressed: trained numbers give back 8% of their bytes, for five times the CPU's
time. And threads that write yield to those that train: with a low priority they take what is left,
and a little for certain. On Linux each thread has a priority of its own, and a thread that it
starts has the same; elsewhere nothing changes.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import orbax.checkpoint as ocp

T = TypeVar("T")
WRITERS = "ts_pool"  # how tensorstore's threads are named
OWN = 0  # for Linux, the thread that asks
NICENESS = 10  # of 19: each gets a tenth of what a busy thread gets


def at_low_priority(action: Callable[[], T]) -> T:
    """What `action` returns or raises, in a thread of low priority; all that it starts has it too.

    So have the threads of tensorstore, which may have been started before.
    """
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (task / "comm").read_text().startswith(WRITERS):
                _lower_priority(int(task.name))
    with ThreadPoolExecutor(1, initializer=_lower_priority, initargs=(OWN,)) as thread:
        return thread.submit(action).result()


def _lower_priority(thread: int) -> None:
    if sys.platform != "linux":  # elsewhere this would be the priority of a whole process
        return
    with suppress(OSError):  # it has ended, or may not be changed
        if os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
            os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


def uncompressed() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's handler of `PyTreeSave`; every other is the one it has by default."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    registry.add(None, ocp.args.PyTreeSave, handler)
    return registry

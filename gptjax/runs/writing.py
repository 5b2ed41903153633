"""Writes a checkpoint beside a train step, which it shall slow as little as it can.

Arrays are not compressed: trained numbers give back 8% of their bytes, for five times the CPU's
time. And threads that write yield to those that train: with a low priority they take what is left,
and a little for certain.
"""

import os
from contextlib import suppress
from pathlib import Path

import orbax.checkpoint as ocp

WRITERS = "ts_pool"  # how tensorstore's threads are named
NICENESS = 10  # of 19: each gets a tenth of what a busy thread gets


def let_writers_yield() -> None:
    """Lower the priority of tensorstore's threads; a system without `/proc` leaves them alone."""
    for task in Path("/proc/self/task").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or may not be changed
            thread = int(task.name)
            is_writer = (task / "comm").read_text().startswith(WRITERS)
            if is_writer and os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


def uncompressed() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's handler of `PyTreeSave`; every other is the one it has by default."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    registry.add(None, ocp.args.PyTreeSave, handler)
    return registry

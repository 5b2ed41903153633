"""Lets the threads that write a checkpoint yield to those that train.

On a machine whose cores all train, writing 1.5 GB takes as much of their time as half a step of
gpt2_124m. With a low priority it takes what is left, and a little for certain.
"""

import os
from contextlib import suppress
from pathlib import Path

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

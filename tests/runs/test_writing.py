"""The threads that write a checkpoint give way to the others, and no other thread does."""

import os
import sys
import threading
from pathlib import Path

import pytest

from gptjax.runs.writing import NICENESS, WRITERS, let_writers_yield

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")


def test_only_threads_that_write_get_a_low_priority():
    ready, done = threading.Barrier(3), threading.Event()
    ids: dict[str, int] = {}

    def named(name: str) -> None:
        ids[name] = threading.get_native_id()
        Path(f"/proc/self/task/{ids[name]}/comm").write_text(name)
        ready.wait()
        done.wait()

    names = (f"{WRITERS}_worker", "another")
    threads = [threading.Thread(target=named, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    ready.wait()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    let_writers_yield()
    found = [os.getpriority(os.PRIO_PROCESS, ids[name]) for name in names]
    done.set()
    for thread in threads:
        thread.join()
    assert found == [max(before, NICENESS), before]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before

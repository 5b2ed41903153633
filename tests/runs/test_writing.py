"""What a save starts gives way to the other threads, and no other thread does."""

import os
import sys
import threading
from pathlib import Path

import pytest

from gptjax.runs.writing import NICENESS, WRITERS, at_low_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")


def priority(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_an_action_and_what_it_starts_have_a_low_priority():
    found = []

    def action() -> str:
        started = threading.Thread(target=lambda: found.append(priority()))
        started.start()
        started.join()
        found.append(priority())
        return "done"

    before = priority()
    assert at_low_priority(action) == "done"
    assert found == [max(before, NICENESS)] * 2
    assert priority() == before


def test_an_error_of_the_action_arrives():
    with pytest.raises(ZeroDivisionError):
        at_low_priority(lambda: 1 // 0)


def test_of_the_threads_that_are_there_only_those_that_write_get_a_low_priority():
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
    before = priority()
    at_low_priority(lambda: None)
    found = [priority(ids[name]) for name in names]
    done.set()
    for thread in threads:
        thread.join()
    assert found == [max(before, NICENESS), before]

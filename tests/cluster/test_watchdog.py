"""A process that waits forever ends itself, and no other does; alone or as one of several."""

import subprocess
import sys
from typing import Any

import pytest
from conftest import environment_on

from gptjax.cluster.watchdog import StallError

SCRIPT = """
from gptjax.cluster.environment import import_jax
import_jax()
import os, signal, subprocess, time, jax
WAIT = {wait}
from gptjax.cluster import watchdog
jax.process_index, jax.process_count = lambda: {processes} - 1, lambda: {processes}
watchdog.PATIENCE = 3
dog = watchdog.Watchdog({seconds})
def wait_for_the_others(): time.sleep({wait})
{beats}
wait_for_the_others()
print("went on")
"""
BEAT, CLOSE = "dog.heartbeat()", "dog.heartbeat(); dog.close()"
PAUSE, AGAIN = "dog.heartbeat(); dog.pause()", "dog.heartbeat(); dog.pause(); dog.heartbeat()"
SLOW = "dog.heartbeat(); time.sleep(0.8); dog.heartbeat()"
STOPPED = (
    "dog.heartbeat(); subprocess.Popen([*'sh -c'.split(), f'sleep 2; kill -CONT {os.getpid()}'])"
)
STOPPED += "; os.kill(os.getpid(), signal.SIGSTOP)"
SAVING = """
def wait_for_the_others():
    with dog.watching("a checkpoint was not saved", {longest}): time.sleep(WAIT)
dog.heartbeat()
"""
SAVED = "dog.heartbeat()\nwith dog.watching('a save'): time.sleep(0.8)"
RESTORING = """
def wait_for_the_others():
    with dog.watching("no checkpoint was restored"): time.sleep(WAIT)
"""
RESTORED = "with dog.watching('a restore'): pass"


def slowly(*case: Any) -> Any:
    """A further case, for the slow suite."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("processes", "seconds", "wait", "beats", "ends"),
    [
        (2, 1, 20, BEAT, True),
        slowly(2, 1, 2, "pass", False),  # still compiling
        (2, 1, 0.3, BEAT, False),
        slowly(2, 1, 2, SLOW, False),  # three times the longest wait are allowed
        slowly(2, 1, 2, CLOSE, False),
        slowly(2, 1, 2, PAUSE, False),
        slowly(2, 1, 20, AGAIN, True),
        slowly(2, 10**13, 1, BEAT, False),  # more than a thread can wait for
        slowly(2, 0, 2, BEAT, False),
        (1, 1, 20, BEAT, True),
        slowly(1, 1, 0.3, BEAT, False),
        slowly(1, 0, 2, BEAT, False),
        slowly(1, 1, 0.3, STOPPED, False),
        (1, 1, 20, SAVING.format(longest=0.0), True),
        slowly(1, 1, 2, SAVING.format(longest=0.8), False),  # three times the longest save
        slowly(1, 1, 20, RESTORING, True),  # before the first heartbeat
        slowly(1, 1, 0.3, RESTORING, False),
        (1, 1, 2, RESTORED, False),  # then it compiles
        slowly(1, 1, 20, SAVED, True),  # which is no measure of other waits: not after 2.4 s
    ],
)
def test_silence_ends_a_process(processes, seconds, wait, beats, ends):
    script = SCRIPT.format(processes=processes, seconds=seconds, wait=wait, beats=beats)
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment_on(1), capture_output=True, text=True
    )
    assert (result.returncode == StallError.exit_code) == ends
    assert (result.stdout == "went on\n") == (not ends)
    assert ends or not result.stderr
    if ends:
        assert "wait_for_the_others" in result.stderr
        *_, last = result.stderr.splitlines()
        name = "process 1: " if processes == 2 else ""
        what = "nothing"
        if "WAIT" in beats:
            what = "no checkpoint was restored" if beats == RESTORING else "a checkpoint was not"
        assert last.startswith(f"{name}error: {what}")
        assert " for 1 s (train.stall_seconds; the longest wait before took 0.0 s)" in last

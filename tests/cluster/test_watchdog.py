"""A process that waits forever ends itself, and no other does; alone or as one of several."""

import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import environment_on

from gptjax.cluster.watchdog import StallError

SCRIPT = """
from gptjax.cluster.environment import import_jax
import_jax()
import os, signal, subprocess, time
WAIT = {wait}
from gptjax.cluster import watchdog
watchdog.PATIENCE = 3
dog = watchdog.Watchdog({seconds}, {processes} - 1)
def wait_for_the_others(): time.sleep({wait})
{beats}
print("went on")
"""
TRAINING = """
with dog.watching("no step was finished"):
    {0}
    wait_for_the_others()
"""
OUTSIDE = """
with dog.watching("no step was finished"): pass
wait_for_the_others()
"""
BEAT, CLOSE = TRAINING.format("dog.heartbeat()"), TRAINING.format("dog.close()")
SLOW = TRAINING.format("time.sleep(0.8); dog.heartbeat()")
STOP = "subprocess.Popen([*'sh -c'.split(), f'sleep 2; kill -CONT {os.getpid()}'])"
STOPPED = TRAINING.format(STOP + "; os.kill(os.getpid(), signal.SIGSTOP)")
SAVE = """
def wait_for_the_others():
    with dog.watching("a checkpoint was not saved", {0}): time.sleep(WAIT)
"""
SAVING, PATIENTLY = SAVE.format(0) + BEAT, SAVE.format(4) + BEAT
FIRST = """
with dog.watching("no step was finished", 0.0, 4.0): wait_for_the_others()
"""
LATER = """
with dog.watching("no step was finished", 0.0, 4.0):
    dog.heartbeat()
    wait_for_the_others()
"""
RESTING = """
with dog.watching("no step was finished"):
    with dog.resting(): wait_for_the_others()
"""
SAVED = TRAINING.format("with dog.watching('a save'): time.sleep(0.8)")  # no measure of steps


def slowly(*case: Any) -> Any:
    """A further case, for the slow suite."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("processes", "seconds", "wait", "beats", "ends"),
    [
        (2, 1, 20, BEAT, True),
        slowly(2, 1, 2, OUTSIDE, False),
        (2, 1, 0.3, BEAT, False),
        slowly(2, 1, 2, SLOW, False),  # three times the longest wait are allowed
        slowly(2, 1, 2, CLOSE, False),
        slowly(2, 10**13, 1, BEAT, False),  # more than a thread can wait for
        slowly(2, 0, 2, BEAT, False),
        slowly(1, 1, 20, BEAT, True),
        slowly(1, 1, 0.3, BEAT, False),
        slowly(1, 0, 2, BEAT, False),
        slowly(1, 1, 0.3, STOPPED, False),
        (1, 1, 20, SAVING, True),
        slowly(1, 1, 2, PATIENTLY, False),
        slowly(1, 1, 20, SAVED, True),
        slowly(1, 1, 2, FIRST, False),
        slowly(1, 1, 20, LATER, True),
        slowly(1, 1, 2, RESTING, False),
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
        what = "a checkpoint was not saved" if beats == SAVING else "no step was finished"
        assert last.startswith(f"{name}error: {what}")
        assert " for 1 s (train.stall_seconds; the longest wait before took 0.0 s)" in last


DEAF = """
from gptjax.cluster.environment import import_jax
import_jax()
from gptjax.cluster import watchdog
import os, time
watchdog.WORDS_SECONDS = 0.5
os.set_blocking(2, False)
try:
    while os.write(2, b"x" * 65536): pass
except BlockingIOError: pass
os.set_blocking(2, True)
with watchdog.Watchdog(1).watching("no step was finished"): time.sleep(20)
"""


@pytest.mark.slow
def test_a_process_that_nobody_listens_to_ends_as_well():
    read, write = os.pipe()
    try:
        words = [sys.executable, "-c", DEAF]
        ended = subprocess.run(words, env=environment_on(1), stderr=write, timeout=60)
        assert ended.returncode == StallError.exit_code
    finally:
        os.close(read)
        os.close(write)

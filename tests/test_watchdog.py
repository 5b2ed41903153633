"""A process that waits for ever for another ends itself, and only then."""

import subprocess
import sys

import pytest
from conftest import environment_on

from gptjax.training.watchdog import StallError

SCRIPT = """
import time, jax
from gptjax.training import watchdog
jax.process_index, jax.process_count = lambda: 1, lambda: {processes}
watchdog.PATIENCE = 3
dog = watchdog.Watchdog({seconds})
def wait_for_the_others(): time.sleep({wait})
{beats}
wait_for_the_others()
print("went on")
"""
BEAT, CLOSE = "dog.beat()", "dog.beat(); dog.close()"
REST, AGAIN = "dog.beat(); dog.rest()", "dog.beat(); dog.rest(); dog.beat()"
SLOW = "dog.beat(); time.sleep(0.8); dog.beat()"


@pytest.mark.parametrize(
    ("processes", "seconds", "wait", "beats", "ends"),
    [
        (2, 1, 20, BEAT, True),
        (2, 1, 2, "pass", False),  # still compiling
        (2, 1, 0.3, BEAT, False),
        (2, 1, 2, SLOW, False),  # three times the longest wait are allowed
        (2, 1, 2, CLOSE, False),
        (2, 1, 2, REST, False),
        (2, 1, 20, AGAIN, True),
        (2, 10**13, 1, BEAT, False),  # more than a thread can wait for
        (2, 0, 2, BEAT, False),
        (1, 1, 2, BEAT, False),
    ],
)
def test_silence_ends_one_of_several_processes(processes, seconds, wait, beats, ends):
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
        assert last.startswith("process 1: error: nothing was finished for 1 s")

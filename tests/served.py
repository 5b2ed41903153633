"""A server in a process of its own, started as a user would."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import environment_on


class Served:
    """`python -m gptjax.serve`, ready to answer."""

    def __init__(self, process: subprocess.Popen, line: str):
        self.process, self.line = process, line
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        self.url = found[0]


@contextlib.contextmanager
def served(run: Path, *flags: object, **environment: str) -> Iterator[Served]:
    """Serve a run on a free port until the end of the block."""
    command = [sys.executable, "-m", "gptjax.serve", "--run", run, "--port", 0, *flags]
    process = subprocess.Popen(
        list(map(str, command)), env=environment_on(1) | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    try:
        yield Served(process, process.stdout.readline())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

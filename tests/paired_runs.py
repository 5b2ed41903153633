"""Runs of two processes on one machine, with one device each."""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from killed_runs import ended, start


def start_pair(
    args: list[str], cwd: Path, *before: str, within: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Both processes of a run, left running; `before` are lines that each executes first.

    `within` begins their commands.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    both = [*args, "--coordinator", where, "--processes", "2", "--process"]
    return [start([*both, str(number)], cwd, 1, *before, within=within) for number in (0, 1)]


def ended_pair(pair: list[subprocess.Popen]) -> tuple[list[int], str]:
    """The exit codes of both, and all that they said."""
    found = [ended(process) for process in pair]
    return [code for code, _ in found], "".join(said for _, said in found)

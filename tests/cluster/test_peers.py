"""The death of a peer is one sentence, also where C++ would abort; other errors stay what they are.

tests/faults/test_hangs.py kills processes that train.
"""

import os
import subprocess
import sys
import threading
from typing import Any

import jax
import pytest
from conftest import environment_on

from gptjax.base.errors import UserError
from gptjax.cluster import peers
from gptjax.cluster.agreement import exit_process
from gptjax.cluster.peers import LostPeerError, ending_clearly, is_lost_peer

WAITS_FOR_NOBODY = """
import socket
from gptjax.base.errors import UserError
from gptjax.cluster import processes
processes.MEETING_SECONDS = 1
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    where = f"127.0.0.1:{free.getsockname()[1]}"
try:
    processes.initialise(processes.Launch(where, 2, 0))
except UserError as error:
    import os
    print(error, flush=True)
    os._exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("JaxRuntimeError", "INTERNAL: Gloo: Connection closed by peer [127.0.0.1]:4", True),
        ("JaxRuntimeError", "RESOURCE_EXHAUSTED: out of memory", False),
        ("ValueError", "UNKNOWN: Gloo all-reduce failed: Connection reset by peer", True),
        ("ValueError", "a batch of 3 rows", False),
        ("ConnectionError", "Connection closed by peer", False),
    ],
)
def test_a_broken_connection_is_told_from_other_errors(kind, words, expected):
    error = type(kind, (RuntimeError,), {})(words)
    assert is_lost_peer(error) == expected
    failed = UserError("a checkpoint could not be written")
    failed.__cause__ = error
    assert is_lost_peer(failed) == expected


def test_the_client_of_jax_gets_a_function_to_call(monkeypatch):
    from jax._src import distributed

    given: list[Any] = []

    class Library:
        def get_distributed_runtime_client(self, *words: Any, **options: Any) -> None:
            given.append((words, options))
            if "missed_heartbeat_callback" in options and len(given) == 2:
                raise TypeError

    library: Any = Library()
    monkeypatch.setattr(distributed, "_jax", library)
    monkeypatch.setattr(peers, "_call_where_cpp_gives_up", lambda end: None)
    with ending_clearly(0):
        client: Any = getattr(distributed, "_jax")  # noqa: B009
        client.get_distributed_runtime_client("here", 1, init_timeout=5)
        client.get_distributed_runtime_client("here")
    assert getattr(distributed, "_jax") is library  # noqa: B009
    assert given[0][0] == ("here", 1)
    assert set(given[0][1]) == {"init_timeout", "missed_heartbeat_callback"}
    assert given[-1] == (("here",), {})


def test_another_jax_aborts_as_it_always_did(monkeypatch):
    def missing(end: Any) -> None:
        raise AttributeError

    monkeypatch.setattr(peers, "_call_where_cpp_gives_up", missing)
    with ending_clearly(0):
        assert jax.process_count() == 1


def test_only_the_first_thread_that_ends_a_process_says_why(monkeypatch, capfd):
    """jax's thread and the main one may notice the death of a peer at the same moment."""

    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        assert code == LostPeerError.exit_code
        raise Left

    ends: list[Any] = []
    monkeypatch.setattr(peers, "_call_where_cpp_gives_up", ends.append)
    monkeypatch.setattr(peers, "_last_words", threading.Lock())
    monkeypatch.setattr(peers, "LAST_WORDS_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", leave)
    with ending_clearly(1):
        pass
    for end in (ends[0], ends[0], lambda: exit_process(LostPeerError(), 1)):
        with pytest.raises(Left):
            end()
    assert capfd.readouterr().err == f"process 1: error: {LostPeerError()}\n"


@pytest.mark.slow
def test_others_that_never_come_are_named():
    words = [sys.executable, "-c", WAITS_FOR_NOBODY]
    result = subprocess.run(words, env=environment_on(1), capture_output=True, text=True)
    assert result.returncode == LostPeerError.exit_code, result.stderr
    assert "process 0 of 2 did not meet all others at 127.0.0.1:" in result.stdout
    assert "stack trace" not in result.stderr

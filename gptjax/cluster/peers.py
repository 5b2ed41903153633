"""Ends this process with one sentence if another process of its run dies.

jax's agent hears of it in a thread of C++, prints a stack of C++ and aborts with code 134. It would
call another function instead, but it cannot tell a Python function the reason, for which Python has
no type: nanobind throws `bad_cast` and C++ gives up (`std::terminate`). So this hooks in there too.
Where a library has other names, jax aborts as it always did.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from gptjax.base.errors import StorageError, UserError

FAILED_CASTS = (b"bad_cast", b"cast_error")  # in the mangled names of what nanobind throws
BROKEN = (  # words of gloo, gRPC and NCCL about a peer that has gone
    *("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe"),
    *("stopped sending heartbeats", "ncclRemoteError", "remote process exited"),
)
RAISED_BY_JAX = ("JaxRuntimeError", "ValueError")  # by a program that runs; by one that starts
LAST_WORDS_SECONDS = 1.0  # time for the others to report before their coordinator exits
_last_words = threading.Lock()  # held by the thread that says why this process ends
_kept: list[Any] = []  # what C++ holds and Python must not free


class LostPeerError(UserError):
    """Another process of the run has died, or cannot be reached."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL

    def __init__(self) -> None:
        super().__init__(
            "another process of the run has died or cannot be reached: its own last words say why. "
            "Restart all of them, as launch/node.sh does: the run continues from its last "
            "checkpoint"
        )


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an exception of jax, or what caused it, says that the connection to a peer broke."""
    while error is not None:
        if type(error).__name__ in RAISED_BY_JAX and any(w in str(error) for w in BROKEN):
            return True
        error = error.__cause__
    return False


def as_user_error(error: BaseException) -> BaseException:
    """What a user is told of an error: that of a disk or of a lost peer, or the error itself."""
    if isinstance(error, OSError):
        return StorageError.of(error) or error
    return LostPeerError() if is_lost_peer(error) else error


def speaks_last() -> bool:
    """Whether the thread that asks is the first that ends this process: it says why."""
    return _last_words.acquire(blocking=False)


@contextmanager
def ending_clearly(process: int) -> Iterator[None]:
    """Let the connection that jax makes in this block end process `process` clearly if it breaks.

    It holds until the process ends.
    """

    def end() -> None:
        if speaks_last():
            name = f"process {process}: " if process else ""
            os.write(2, f"{name}error: {LostPeerError()}\n".encode())
        else:  # the main thread noticed as well, and leaves after its words
            time.sleep(2 * LAST_WORDS_SECONDS)
        os._exit(LostPeerError.exit_code)

    try:
        connecting: Any = import_module("jax._src.distributed")
        library = connecting._jax
        _call_where_cpp_gives_up(end)
    except (ImportError, AttributeError, OSError):
        yield
        return
    connecting._jax = _Answering(library, end)
    try:
        yield
    finally:
        connecting._jax = library


class _Answering:
    """jax's library, whose client calls `end` with whatever it says when it loses the others."""

    def __init__(self, library: Any, end: Callable[[], None]):
        self._library, self._end = library, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def get_distributed_runtime_client(self, *words: Any, **options: Any) -> Any:
        make, end = self._library.get_distributed_runtime_client, self._end
        try:
            return make(*words, missed_heartbeat_callback=lambda *_: end(), **options)
        except TypeError:  # it has another name
            return make(*words, **options)


def _call_where_cpp_gives_up(end: Callable[[], None]) -> None:
    """Call `end` on an exception that a failed cast to Python threw and nobody caught.

    Any other one goes on to the handler before.
    """
    cpp = ctypes.CDLL("libstdc++.so.6")
    thrown, set_handler = cpp.__cxa_current_exception_type, cpp._ZSt13set_terminatePFvvE
    thrown.restype = set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = [ctypes.c_void_p]
    before: list[Callable[[], None]] = []

    def handle() -> None:
        with suppress(ValueError):
            if (kind := thrown()) and any(word in _name_of(kind) for word in FAILED_CASTS):
                end()
        before[0]()

    handler = ctypes.CFUNCTYPE(None)(handle)
    _kept.append(handler)
    before.append(ctypes.CFUNCTYPE(None)(set_handler(ctypes.cast(handler, ctypes.c_void_p))))


def _name_of(kind: int) -> bytes:
    """The mangled name in a std::type_info: its second word (Itanium C++ ABI)."""
    return ctypes.c_char_p.from_address(kind + ctypes.sizeof(ctypes.c_void_p)).value or b""

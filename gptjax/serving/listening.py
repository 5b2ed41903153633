"""The address that the server listens on, reserved before the model is loaded.

So a port that is in use is told at once. Needs no jax.
"""

import errno
import socket

from gptjax.base.errors import ConfigError, UserError
from gptjax.serving.guard import is_home
from gptjax.serving.options import KEY_VARIABLE


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """Reserve an address; raises `UserError` if that fails, or if others could ask without a key.

    Nobody can connect before `listen`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is no address of this machine: {error}") from None
    family, kind, protocol, _, address = found[0]
    if key is None and not is_home(str(address[0])):
        raise ConfigError(
            [f"--host {host} lets other machines ask: give --api-key KEY, or set {KEY_VARIABLE}"]
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
        bound.bind(address)
        # two processes may both have bound by now, but only one can listen
    except OSError as error:
        bound.close()
        raise UserError(_why_not(error, host, port)) from None
    return bound


def _why_not(error: OSError, host: str, port: int) -> str:
    reasons = {
        errno.EADDRINUSE: f"port {port} is in use: give another --port, or 0 for a free one",
        errno.EACCES: f"port {port} needs privileges: give a --port from 1024 on",
        errno.EADDRNOTAVAIL: "it is no address of this machine",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host}: {reason}"


def address_of(bound: socket.socket) -> str:
    """The URL of a socket.

    >>> with bind("127.0.0.1", 0, None) as bound: address_of(bound).rpartition(":")[0]
    'http://127.0.0.1'
    """
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(bound: socket.socket) -> None:
    """Let clients connect; raises `UserError` if another process took the port meanwhile."""
    try:
        bound.listen()
    except OSError as error:
        raise UserError(_why_not(error, *bound.getsockname()[:2])) from None

"""Who may ask: the API key, and the name by which a server without a key is called.

A server without a key listens to its own machine only. But a page of any web site can let the
browser on that machine call it, under a name of its own that leads to 127.0.0.1. So such a server
answers only to the names of this machine.
"""

import hmac
import ipaddress
from typing import Any

from gptjax.serving.refusals import Refusal

OPEN_PATHS = {"/", "/health"}
HOME_NAMES = {"localhost", "localhost."}


class Guard:
    """Raises `Refusal` for requests without the right key, or for a strange host's name."""

    def __init__(self, key: str | None):
        self._key = key

    def check(self, path: str, headers: Any) -> None:
        """Check a request by its path and its headers, a mapping of lower-case names."""
        if self._key is None:
            self._check_host(headers.get("host"))
        elif path not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), (self._key or "").encode())
        if scheme.lower() == "bearer" and right:
            return
        words = "a wrong API key" if given else "no API key"
        message = f"the request has {words}: expected the header `Authorization: Bearer KEY`"
        headers = {"WWW-Authenticate": "Bearer"}
        raise Refusal(401, message, code="invalid_api_key", headers=headers)

    def _check_host(self, host: str | None) -> None:
        if host is not None and not is_home(host_name(host)):
            message = (
                f"this server has no API key, so it answers only to names of its own machine, such "
                f"as 127.0.0.1, and not to {host[:100]!r}: start it with --api-key"
            )
            raise Refusal(403, message, code="host_not_allowed")


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port.

    >>> host_name("[::1]:8000"), host_name("LocalHost:80"), host_name("127.0.0.1")
    ('::1', 'localhost', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def is_home(name: str) -> bool:
    """Whether a host's name or address means this machine, and no other can reach it there."""
    if name in HOME_NAMES:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

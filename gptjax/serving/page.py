"""The playground as an HTTP response: one file, and headers that let it do nothing else.

The page holds its style and its script. The browser runs these two because the policy names their
hashes, and it refuses whatever else reaches the page: other scripts, other hosts, frames.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).with_name("page.html")


@cache
def read_page() -> tuple[bytes, dict[str, str]]:
    """The page as UTF-8, and the headers to send with it.

    >>> body, headers = read_page()
    >>> body[:15], headers["Content-Type"]
    (b'<!doctype html>', 'text/html; charset=utf-8')
    """
    body = PAGE.read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(body, b"script"),
        "style-src": _hashes(body, b"style"),
        "connect-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # text never becomes HTML, not even by mistake
        "trusted-types": "'none'",
    }
    return body, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(body: bytes, element: bytes) -> str:
    """The sources that allow the inline elements of this name, and no others."""
    contents = re.findall(rb"<%b>(.*?)</%b>" % (element, element), body, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content).digest()) for content in contents)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

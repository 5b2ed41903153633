"""Silences messages of other libraries that this program reports itself, or that mean nothing."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


def silence_orbax() -> None:
    """Have Orbax raise its errors and print nothing.

    Orbax logs the work of its threads. After a failed save, asyncio logs tasks that are never
    awaited, tensorstore calls back into an event loop that Orbax has closed, and some coroutines
    never begin. The failure itself is raised.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_orbax)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
    """`sys.unraisablehook` without the errors of a closed event loop."""

    def __init__(self, others: Any):
        self._others = others

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._others(unraisable)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """False for Orbax's own records, and for asyncio's with Orbax in the traceback."""
    return ORBAX not in record.pathname and ORBAX not in logging.Formatter().format(record)


@contextmanager
def silent_matplotlib() -> Iterator[None]:
    """Draw without matplotlib's warnings about a read-only home and characters missing in its font.

    matplotlib raises an error if it cannot make a temporary directory.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

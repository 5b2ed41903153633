"""What other libraries say of their own, where this program says it itself or need not."""

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

    It narrates what its threads do, and after a failed save asyncio logs tasks that nobody waits
    for, tensorstore calls back into an event loop that Orbax has closed, and coroutines are left
    that never began. The failure itself is raised.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_orbax)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
    """`sys.unraisablehook` without what comes of a closed event loop."""

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
    """Draw without matplotlib's warnings: of a read-only home, or of letters that its font lacks.

    Where it cannot even make a temporary directory it raises an error.
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

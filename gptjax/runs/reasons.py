"""Why Orbax could not save or restore, in one line."""

import os

from gptjax.base.errors import DISK_ERRORS, first_line

REASONS = [os.strerror(number) for number in sorted(DISK_ERRORS)]


def reason_of_save(error: Exception) -> str:
    """The reason of a failed save in one line; tensorstore hides it among many file names."""
    if known := next((text for text in REASONS if text in str(error)), None):
        return known
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
    is_unknown = type(error) is OSError and error.errno is None
    return f"{reason} (is the disk full?)" if is_unknown else reason


def reason_of(error: Exception) -> str:
    """Orbax's message, in one line."""
    return f"{type(error).__name__} on reading it: {first_line(error)[:200]}"

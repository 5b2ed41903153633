"""Steps that versions before signatures have written: signed when they are first seen.

Nothing can tell whether such a step is what was written, and a line says so. A step of this version
is never unsigned: its cursor shows that it is one, and without `INTEGRITY.json` it is damaged.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from gptjax.runs.digests import DIGESTS
from gptjax.runs.integrity import INTEGRITY
from gptjax.runs.ranking import CURSOR_FILE

UNVERIFIED = "was saved by an earlier version, which did not sign it: it could not be verified"


def is_of_earlier_version(step_dir: Path, needed: Iterable[str]) -> bool:
    """Whether a step is unsigned, has the items that are `needed`, and no mark of this version."""
    if (step_dir / INTEGRITY).exists() or not all((step_dir / item).exists() for item in needed):
        return False
    try:
        cursor = json.loads((step_dir / CURSOR_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(cursor, dict) and DIGESTS not in cursor

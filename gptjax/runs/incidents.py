"""incidents.json: what a run had to give up or go back for, with the steps; a resume keeps it.

The rows of steps after the last checkpoint are cut off when a run resumes, and so is what they say.
"""

import json
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically

INCIDENTS = "incidents.json"
NOT_FINITE, ROLLBACK, RISE = "not finite", "rollback", "rise"
Incident = dict[str, Any]
"""`kind`, one of the three, and `steps`, the first and the last; a rollback says more."""


def read_incidents(run: Path) -> list[Incident]:
    """Everything that a run has noted, oldest first; raises `UserError` for a damaged file."""
    path = run / INCIDENTS
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Restore it, or move it away: then the run forgets "
            "which data it passes over"
        ) from error


def write_incidents(run: Path, incidents: list[Incident]) -> None:
    """Replace what a run has noted, atomically."""
    write_atomically(run / INCIDENTS, (json.dumps(incidents, indent=2) + "\n").encode())


def note_incident(run: Path, incident: Incident) -> None:
    """Add one to what a run has noted."""
    write_incidents(run, [*read_incidents(run), incident])

"""W&B and trackio: a run of theirs that belongs to a run directory.

A small file in the directory keeps the run's name there and the last step that it has. It is
written once rows are flushed, and a session that a kill cut short is dropped or counted first. Both
keep the first row that they got of a step: they cannot take one back if a run goes back behind it.
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from gptjax.base.files import write_atomically
from gptjax.runs.metrics import Row
from gptjax.runs.row_numbers import numbers_of

PROJECT = "gptjax"


class _Given:
    """What a tracker has of a run: `id`, its name there; `sent`, its last step; `open`, a session.

    The file lies in the run directory.
    """

    def __init__(self, run: Path, tracker: str):
        self._file = run / f".{tracker}.json"
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.id: str = known.get("id") or secrets.token_hex(4)
        self.sent: int = known.get("sent", 0)
        self.open: str | None = known.get("open")
        self.keep()

    def keep(self) -> None:
        """Write the file."""
        values = {"id": self.id, "sent": self.sent, "open": self.open}
        write_atomically(self._file, json.dumps(values).encode())


def give_wandb(run: Path, config: str, rows: list[Row]) -> None:
    """Send the rows to W&B, or write them for `wandb sync` if it is offline (WANDB_MODE)."""
    import wandb

    given = _Given(run, "wandb")
    if given.open is not None:  # offline, and cut short: its rows are given again
        shutil.rmtree(given.open, ignore_errors=True)
        given.open = None
        given.keep()
    if not (missing := [row for row in rows if row["step"] > given.sent]):
        return
    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False
    )
    session = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=given.id,
        dir=str(run),
        config=json.loads(config),
        resume="allow",
        settings=quiet,
    )
    if session.offline:
        given.open = session.sync_dir
        given.keep()
    session.define_metric("train_step")
    session.define_metric("*", step_metric="train_step")
    for row in missing:
        if row["step"] >= session.starting_step:  # online, a session may have been cut short
            session.log({**numbers_of(row), "train_step": row["step"]}, step=row["step"])
    session.finish()
    given.sent, given.open = missing[-1]["step"], None
    given.keep()


def give_trackio(run: Path, config: str, rows: list[Row]) -> None:
    """Write the rows into trackio's database, or send them where its own settings say."""
    import trackio

    given = _Given(run, "trackio")
    if not (missing := [row for row in rows if row["step"] > given.sent]):
        return
    name = f"{run.name}-{given.id}"
    session: Any = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=name,
        config=json.loads(config),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    has = _last_step(session.project, name)  # a session that was cut short may have given some
    for row in missing:
        if has is None or row["step"] > has:
            session.log({**numbers_of(row), "train_step": row["step"]}, step=row["step"])
    session.finish()
    given.sent = missing[-1]["step"]
    given.keep()


def _last_step(project: str, name: str) -> int | None:
    from trackio import SQLiteStorage

    with contextlib.suppress(Exception):
        return SQLiteStorage.get_max_step_for_run(project, name)
    return None

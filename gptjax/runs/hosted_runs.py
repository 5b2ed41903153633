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
_SESSION = ".wandb-session-"


class _Given:
    """What a tracker has of a run: `id`, its name there, and `sent`, its last step.

    The file lies in the run directory. `whole` is a session of W&B that ended but is not yet in its
    place.
    """

    def __init__(self, run: Path, tracker: str):
        self._file = run / f".{tracker}.json"
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.id: str = known.get("id") or secrets.token_hex(4)
        self.sent: int = known.get("sent", 0)
        self.whole: str | None = known.get("whole")
        self.keep()

    def keep(self) -> None:
        """Write the file."""
        values = {"id": self.id, "sent": self.sent, "whole": self.whole}
        write_atomically(self._file, json.dumps(values).encode())


def give_wandb(run: Path, config: str, rows: list[Row]) -> None:
    """Send the rows to W&B, or write them for `wandb sync` if it is offline (WANDB_MODE).

    A session writes its files elsewhere, and they come to RUN/wandb once it is whole: W&B's own
    process may go on writing when this one is killed.
    """
    import wandb

    given = _Given(run, "wandb")
    _put_in_place(run, given)
    if not (missing := [row for row in rows if row["step"] > given.sent]):
        return
    elsewhere = run / f"{_SESSION}{secrets.token_hex(4)}"
    elsewhere.mkdir()
    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False
    )
    session = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=given.id,
        dir=str(elsewhere),
        config=json.loads(config),
        resume="allow",
        settings=quiet,
    )
    session.define_metric("train_step")
    session.define_metric("*", step_metric="train_step")
    for row in missing:
        if row["step"] >= session.starting_step:  # online, a session may have been cut short
            session.log({**numbers_of(row), "train_step": row["step"]}, step=row["step"])
    session.finish()
    given.sent, given.whole = missing[-1]["step"], elsewhere.name
    given.keep()
    _put_in_place(run, given)


def _put_in_place(run: Path, given: _Given) -> None:
    """Move the files of a whole session to RUN/wandb, and drop those of sessions that are not."""
    place = run / "wandb"
    if given.whole is not None:
        place.mkdir(exist_ok=True)
        for part in (run / given.whole / "wandb").glob("*run-*"):
            if not part.is_symlink():
                part.replace(place / part.name)
        given.whole = None
        given.keep()
    for session in run.glob(f"{_SESSION}*"):
        shutil.rmtree(session, ignore_errors=True)


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

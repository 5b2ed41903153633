"""TensorBoard's files of a run: one for each time that rows are handed over.

A file is written elsewhere and renamed when it is whole, and its name says which steps it has. So
what TensorBoard has is what is there, after any kill; and if a run goes back behind a file's steps,
the file goes.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any

from gptjax.runs.metrics import Row
from gptjax.runs.row_numbers import numbers_of

FOLDER = "tensorboard"
_NAME = re.compile(r"events\.out\.tfevents\.(\d+)-(\d+)\.gptjax")


def give_tensorboard(run: Path, config: str, rows: list[Row]) -> None:
    """Write the rows that no file has yet; the first file has the config as a text as well."""
    folder, last = run / FOLDER, rows[-1]["step"] if rows else 0
    folder.mkdir(exist_ok=True)
    has = 0
    for file in sorted(folder.iterdir()):
        if (steps := _NAME.fullmatch(file.name)) is None:
            continue
        if int(steps[2]) > last:
            file.unlink()  # the run went back behind it
        else:
            has = int(steps[2])
    if missing := [row for row in rows if row["step"] > has]:
        _write(folder, missing, None if has else config)


def _write(folder: Path, rows: list[Row], config: str | None) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    events: Any = event_pb2  # its classes are made when it is imported
    summaries: Any = summary_pb2
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    writer, now = EventFileWriter(str(unfinished)), time.time()
    if config is not None:
        summary = summaries.Summary(value=[summaries.Summary.Value(tag="config", **_text(config))])
        writer.add_event(events.Event(wall_time=now, summary=summary))
    for row in rows:
        values = [
            summaries.Summary.Value(tag=name, simple_value=number)
            for name, number in numbers_of(row).items()
        ]
        summary = summaries.Summary(value=values)
        writer.add_event(events.Event(wall_time=now, step=row["step"], summary=summary))
    writer.close()
    (file,) = unfinished.iterdir()
    steps = f"{rows[0]['step']:010d}-{rows[-1]['step']:010d}"
    file.replace(folder / f"events.out.tfevents.{steps}.gptjax")
    unfinished.rmdir()


def _text(config: str) -> dict[str, Any]:
    """The config as TensorBoard keeps texts; it shows Markdown, in which this is code."""
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    code = "".join(f"    {line}\n" for line in config.splitlines())
    return {
        "metadata": create_summary_metadata("config", "config.json"),
        "tensor": make_tensor_proto([code.encode()]),
    }

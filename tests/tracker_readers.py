"""What the trackers of a run have of it, read by their own readers: rows by their steps."""

import importlib
import json
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

Given = dict[int, dict[str, float]]  # by step


def in_tensorboard(run: Path) -> Given:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Tensors("config")] == [0]
    given: Given = {}
    for name in found.Tags()["scalars"]:
        for event in found.Scalars(name):
            assert name not in given.setdefault(event.step, {}), "twice"
            given[event.step][name] = event.value
    return given


def records(file: Path) -> list[bytes]:
    """The records of a file of W&B: a log of LevelDB, in blocks of 32 KiB, after 7 bytes."""
    raw, place, parts, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(raw):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found


def in_wandb(run: Path) -> Given:
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    given: Given = {}
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one run, in several parts
    for file in files:
        for raw in records(file):
            record = proto.Record.FromString(raw)
            if record.WhichOneof("record_type") != "history":
                continue
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            step = json.loads(items["train_step"])
            assert json.loads(items["_step"]) == step
            assert step not in given, "twice"
            given[step] = {k: json.loads(v) for k, v in items.items() if k[0] != "_"}
            del given[step]["train_step"]
    return given


def in_trackio(run: Path) -> Given:
    (file,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
    given: Given = {}
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    for _, step, text in rows:
        assert step not in given, "twice"
        given[step] = {k: v for k, v in json.loads(text).items() if k != "train_step"}
    return given


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio}

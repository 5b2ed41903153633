"""One tracker gets the rows of a run: the process that `trackers` starts.

    python -m gptjax.runs.tracking TRACKER RUN STEP

gives a tracker the rows of RUN/metrics.jsonl up to STEP that it does not have yet.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from gptjax.base.files import locked
from gptjax.runs.event_files import give_tensorboard
from gptjax.runs.hosted_runs import give_trackio, give_wandb
from gptjax.runs.metrics import Row, read_rows

OTHER_WAITS = 60.0  # seconds for the process of an earlier start, which outlived a kill
Give = Callable[[Path, str, list[Row]], None]
GIVERS: dict[str, Give] = {
    "tensorboard": give_tensorboard,
    "wandb": give_wandb,
    "trackio": give_trackio,
}


def track(name: str, run: Path, step: int) -> None:
    """Give the tracker `name` the rows of a run up to `step`, while no other process does."""
    deadline = time.monotonic() + OTHER_WAITS
    while True:
        with locked(run / f".{name}.lock") as is_free:
            if is_free:
                rows = [row for row in read_rows(run / "metrics.jsonl") if row["step"] <= step]
                GIVERS[name](run, (run / "config.json").read_text(), rows)
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process is giving rows of {run} to {name}")
        time.sleep(0.1)


if __name__ == "__main__":
    track(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

"""Train as `python -m gptjax.train` does, and write down the rows that each step is given.

    python fed_rows.py FILE KILL_AFTER [flags of gptjax.train]

Every step adds a line of JSON to FILE: its number from 0, and this process's rows of tokens, as
they lie on its devices. With KILL_AFTER above 0 the process kills itself at the first step from
there on that finds a checkpoint.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.training.setup import Setup

FILE, KILL_AFTER = Path(sys.argv[1]), int(sys.argv[2])
train_steps = Setup.train_steps


def note_and_train(self: Setup, state: Any, call: Any) -> Any:
    """Write the rows down, and then do what `train_steps` does."""
    step = int(state.step)
    run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
    if 0 < KILL_AFTER <= step:
        if any(p.name.isdigit() for p in run.glob("checkpoints/*")):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)  # a save goes on meanwhile
    shards = call.batch["tokens"].addressable_shards
    parts = [np.asarray(s.data) for s in sorted(shards, key=lambda s: s.index[1].start or 0)]
    rows = np.concatenate(parts, axis=1).reshape(-1, parts[0].shape[-1])  # in the loader's order
    with FILE.open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows.tolist()}) + "\n")
    return train_steps(self, state, call)


Setup.train_steps = note_and_train
sys.argv = ["gptjax.train", *sys.argv[3:]]
runpy.run_module("gptjax.train", run_name="__main__")

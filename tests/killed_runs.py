"""Runs in processes of their own, to be killed at a chosen moment and compared afterwards.

The process of a run is started in the background, in a directory of the test; its run is in `run`.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from conftest import environment_on, without_speed

from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import make_mesh
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import TrainState, abstract_state, items_of, state_of

LONGEST = 500.0  # seconds that a run of a test may take on a busy machine


def start(
    args: list[str], cwd: Path, devices: int = 1, *before: str, within: Sequence[str] = ()
) -> subprocess.Popen:
    """The same process as `run_verb`'s, left running; `before` are lines that it executes first.

    `within` begins its command, as `nice` would.
    """
    words = ["-m", "gptjax.train"]
    if before:
        then = "from gptjax.train import train", "from gptjax.cli import main", "main(train)"
        words = ["-c", "\n".join([*before, *then])]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*within, sys.executable, *words, *args],
        cwd=cwd, env=environment_on(devices), stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit code and all that it said; a process that does not end is killed, and fails."""
    try:
        output, errors = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"did not end in {LONGEST} s:\n{output}{errors}") from None
    return process.returncode, output + errors


def trained(args: list[str], cwd: Path, *before: str) -> str:
    """Run to the end, which must be a good one; all that it said."""
    code, said = ended(start(args, cwd, 1, *before))
    assert code == 0, said
    return said


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Look often; a process that ends meanwhile ends the waiting as well."""
    while not happened() and process.poll() is None:
        time.sleep(0.001)


def killed_once(
    happened: Callable[[], bool], args: list[str], cwd: Path, delay: float = 0.0
) -> None:
    """Start a run, and kill it so many seconds after something happened."""
    process = start(args, cwd)
    wait_until(happened, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def rows(cwd: Path) -> list[dict]:
    """Everything in metrics.jsonl that has to be the same: all but what a clock measured."""
    lines = (cwd / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [without_speed(row) for row in found]


def written(cwd: Path) -> int:
    path = cwd / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(cwd: Path) -> set[int]:
    path = cwd / "run" / "checkpoints"
    return {int(p.name) for p in path.iterdir() if p.name.isdigit()} if path.exists() else set()


def newest(cwd: Path) -> int:
    """The last step that is saved; 0 without one."""
    return max(checkpoints(cwd), default=0)


def resumed_after(said: str) -> int:
    """The step that a start went on from; 0 if it said none."""
    found = re.search(r"resuming run after step (\d+)", said)
    return int(found[1]) if found else 0


def unfinished(cwd: Path) -> set[tuple[str, int]]:
    """Names and inodes of the steps that are begun and not committed, of whichever start."""
    found = set()
    for path in (cwd / "run" / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        with suppress(FileNotFoundError):  # it was committed meanwhile
            found.add((path.name, path.stat().st_ino))
    return found


def final_state(cwd: Path) -> TrainState:
    """All that the newest checkpoint holds, which must be undamaged."""
    run_dir = RunDir(cwd / "run")
    config, said = run_dir.read_config(), []
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    checkpointer = Checkpointer(run_dir.checkpoints, read_only=True)
    assert checkpointer.steps()[-1] == config.train.max_steps
    target = abstract_state(config.model, optimizer, make_mesh(1))
    restored = checkpointer.restore(items_of(target), said.append)
    checkpointer.close()
    assert said == []
    assert restored is not None
    return state_of(restored.step, restored.items, target)


def assert_same_run(broken: Path, unbroken: Path) -> None:
    """Every row, every sample, every parameter and every moment, bit for bit."""
    assert rows(broken) == rows(unbroken)
    assert [row["step"] for row in rows(broken)] == list(range(1, len(rows(unbroken)) + 1))
    samples = [cwd / "run" / "samples.md" for cwd in (broken, unbroken)]
    texts = [path.read_bytes() if path.exists() else b"" for path in samples]
    assert texts[0] == texts[1]
    expected = named_leaves(final_state(unbroken))
    for name, leaf in named_leaves(final_state(broken)).items():
        np.testing.assert_array_equal(leaf, expected[name], strict=True, err_msg=name)

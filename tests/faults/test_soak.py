"""A run of two processes that is killed again and again, mostly in the middle of its saves.

Every start resumes from a step that verifies. Started by as many processes each time, it ends with
the losses of an unbroken run, bit for bit; by one and two in turns, with the same to 1e-5.

    pytest tests/faults/test_soak.py --soak 100
"""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import environment_on, without_speed
from killed_runs import resumed_after

from gptjax.data.manifest import Manifest
from gptjax.runs.integrity import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
SHORT = 6  # kills, over both tests, without --soak
LONGEST = 300.0  # seconds that a start may take to save, on a busy machine
UNFINISHED = "*.orbax-checkpoint-tmp*"


@pytest.fixture
def kills(request) -> int:
    """Half of the number after --soak, for each of two tests."""
    return (request.config.getoption("--soak", default=0) or SHORT) // 2


class Run:
    """A run in `cwd`/run whose every start is killed, but for the last one."""

    def __init__(self, data: Manifest, cwd: Path, steps: int, dropout: float):
        self.cwd, self.checkpoints, self._log = cwd, cwd / "run" / "checkpoints", cwd / "out"
        cwd.mkdir()
        values = [
            *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
            *("--model.unroll", 1, "--model.embd-pdrop", dropout, "--optim.peak-lr", 1e-4),
            *("--optim.warmup-steps", 5, "--train.max-steps", steps, "--train.micro-batch", 1),
            *("--train.save-every-steps", 2, "--train.eval-every-steps", 0),
            *("--train.sample-every-steps", 0, "--train.preflight", "off"),
        ]
        self._words = [sys.executable, "-m", "gptjax.train", *map(str, values)]

    def start(self, processes: int) -> list[subprocess.Popen]:
        """Each on one device; what all of them say goes into one file."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        flags = ["--coordinator", where, "--processes", str(processes), "--process"]
        with self._log.open("w") as log:
            return [
                subprocess.Popen(
                    [*self._words, *([*flags, str(i)] if processes > 1 else [])],
                    cwd=self.cwd, env=environment_on(1), stdout=log, stderr=log,
                )
                for i in range(processes)
            ]  # fmt: skip

    def said(self) -> str:
        return self._log.read_text()

    def saved(self) -> int:
        """The newest committed step."""
        names = [p.name for p in self.checkpoints.glob("[0-9]*") if p.name.isdecimal()]
        return max(map(int, names), default=0)

    def is_saving(self) -> bool:
        return any(self.checkpoints.glob(UNFINISHED))

    def rows(self) -> list[dict]:
        lines = (self.cwd / "run" / "metrics.jsonl").read_text().splitlines()
        return [without_speed(json.loads(line)) for line in lines]

    def to_the_end(self, processes: int) -> None:
        started = self.start(processes)
        try:
            codes = [process.wait(LONGEST) for process in started]
        finally:
            end(started)
        assert codes == [0] * processes, self.said()

    def killed(self, processes: int, chance: random.Random) -> None:
        """Let it save, and kill it: three times out of four in the middle of a later save."""
        before, started = self.saved(), self.start(processes)
        try:
            wait(lambda: self.saved() > before, started, self)
            if chance.random() < 0.75:
                wait(self.is_saving, started, self)
                time.sleep(chance.uniform(0, 0.03))
            else:
                time.sleep(chance.uniform(0, 1))
            chance.shuffle(started)
            for process in started:
                process.kill()
                time.sleep(chance.choice((0, 0.05)))
        finally:
            end(started)
        codes = {process.returncode for process in started}
        assert codes <= {-signal.SIGKILL, PEER_DIED}  # the other may have noticed the first kill
        assert self.resumed() == before

    def resumed(self) -> int:
        """The step from which the last start went on."""
        return resumed_after(self.said())

    def is_verified(self) -> bool:
        """Whether the newest step is what was written; the deletion of others may be cut short."""
        return verify(self.checkpoints / str(self.saved())) is None


PEER_DIED = 75


def wait(happened: Callable[[], bool], started: list[subprocess.Popen], run: Run) -> None:
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert all(process.poll() is None for process in started), run.said()
        assert time.monotonic() < deadline, run.said()
        time.sleep(0.001)


def end(started: list[subprocess.Popen]) -> None:
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("turns", [(2,), (1, 2)], ids=["by two", "by one and two in turns"])
def test_a_run_of_two_processes_that_is_killed_again_and_again(
    prepared, tmp_path, kills, turns, record_property
):
    steps = 8 * kills + 20
    dropout = 0.1 if turns == (2,) else 0.0  # masks depend on which rows a micro-step has
    given = steps, dropout
    unbroken, run = (Run(prepared, tmp_path / name, *given) for name in ("unbroken", "run"))
    unbroken.to_the_end(2)
    chance, during = random.Random(kills), 0
    for kill in range(kills):
        assert run.saved() < steps - 6, "too few steps for so many kills"
        run.killed(turns[kill % len(turns)], chance)
        during += run.is_saving()
        assert run.is_verified()
    run.to_the_end(2)
    assert run.resumed() > 0
    assert not (run.cwd / "run" / "damaged").exists()
    assert not run.is_saving()
    assert 2 * during >= kills
    record_property("fault", [f"kill -9, started {turns}", kills, kills, 0, f"{during} in a save"])

    expected, found = unbroken.rows(), run.rows()
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    if turns == (2,):
        assert found == expected
    else:
        for name in ("train_loss", "learning_rate", "grad_norm", "tokens"):
            values = [[row[name] for row in rows] for rows in (found, expected)]
            assert values[0] == pytest.approx(values[1], rel=1e-5)

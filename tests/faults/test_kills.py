"""A run that is killed while it saves loses nothing but the steps since its last completed save.

Kills are SIGKILLs of real processes at random moments, most of them between the begin of a save and
its end. Afterwards the run goes on to its end, and is compared bit for bit with an unbroken one.
"""

import random
import signal
import time
from pathlib import Path

import pytest
from killed_runs import (
    assert_same_run,
    checkpoints,
    ended,
    newest,
    resumed_after,
    start,
    trained,
    unfinished,
    wait_until,
    written,
)

from gptjax.data.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
KILLS, SHORT = 10, 24  # steps of a short run


def options(data: Manifest, steps: int) -> list[str]:
    """A save is nearly always being written: one is due every 3 steps, which are shorter."""
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.unroll", 1, "--model.embd-pdrop", 0.1, "--optim.warmup-steps", 10),
        *("--train.max-steps", steps, "--train.save-every-steps", 3, "--train.preflight", "off"),
        *("--train.eval-every-steps", 20, "--train.eval-tokens", 512),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def short(prepared, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("short")
    trained(options(prepared, SHORT), directory)
    return directory


def test_kills_at_random_moments_of_saves_lose_nothing(prepared, tmp_path, report, request):
    kills = max(KILLS, request.config.getoption("--soak"))
    steps = 12 * kills  # enough for all of them
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
    cwd, words = tmp_path / "broken", options(prepared, steps)
    chance, during, most, before = random.Random(7), 0, 0, 0
    for number in range(kills):
        left, process = unfinished(cwd), start(words, cwd)
        if number % 5 < 4:  # let some saves of this start end, and kill in one
            further = min(steps - 20, before + 3 * chance.randint(1, 3))
            wait_until(lambda n=further, o=left: newest(cwd) >= n and unfinished(cwd) - o, process)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, 4))
        process.kill()
        _, said = ended(process)
        assert process.returncode == -signal.SIGKILL, said
        assert resumed_after(said) in (0, before)  # 0: it did not get so far
        during += bool(unfinished(cwd) - left)
        before = newest(cwd)
        most = max(most, written(cwd) - before)
    assert resumed_after(trained(words, cwd)) == before > 0
    assert not (cwd / "run" / "damaged").exists()
    assert not unfinished(cwd)
    trained(words, tmp_path / "whole")
    assert_same_run(cwd, tmp_path / "whole")
    assert 2 * during >= kills
    note = f"{during} of {kills} in a save; at most {most} steps were done again"
    report("kill -9 at a random moment", kills, kills, 0, note)


# the process dies at the n-th rename whose target's name is that of a step
DIES_AT = """
import os, pathlib, re, signal
rename, seen = os.rename, []
def dying(source, target, **where):
    name = pathlib.Path(target).name
    if re.fullmatch({pattern!r}, name):
        seen.append(name)
    dies = len(seen) == {nth} and re.fullmatch({pattern!r}, name)
    if dies and {early}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, **where)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = dying
"""
MOMENTS = {
    "before the files are complete": (r"\d+\.orbax-checkpoint-tmp", True),
    "before the signature": (r"\d+\.orbax-checkpoint-tmp", False),
    "between signature and commit": (r"\d+", True),
    "after the commit": (r"\d+", False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_each_rename_of_a_save(prepared, tmp_path, short, report, moment):
    pattern, early = MOMENTS[moment]
    dies = DIES_AT.format(pattern=pattern, early=early, nth=4)
    code, said = ended(start(options(prepared, SHORT), tmp_path, 1, dies))
    assert code == -signal.SIGKILL, said
    saved = newest(tmp_path)
    assert bool(unfinished(tmp_path)) == (moment != "after the commit")
    for step in checkpoints(tmp_path):
        assert (tmp_path / "run" / "checkpoints" / str(step) / "INTEGRITY.json").is_file()
    assert resumed_after(trained(options(prepared, SHORT), tmp_path)) == saved
    assert_same_run(tmp_path, short)
    report(f"kill -9 {moment}", 1, 1, 0)

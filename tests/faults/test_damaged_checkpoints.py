"""A flipped bit anywhere in the newest checkpoint never reaches the model.

Each file of a step is damaged in turn, and the step is opened as a resumed run opens it, and as
`gptjax.generate` does.
"""

import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_runs import Heard

from gptjax.base.errors import UserError
from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import make_mesh
from gptjax.conversion.opening import load_run
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import abstract_state, items_of

pytestmark = pytest.mark.slow
NEWEST, BEFORE = "20", 10


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if not content:
        path.write_bytes(b"\1")
        return
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))] if content else b"\1")


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def fill_with_zeros(path: Path, chance: random.Random) -> None:
    """What a power failure leaves of a file whose blocks never came to the disk."""
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)) if any(content) else b"\1")


def restored(run: Path) -> tuple[int, dict[str, np.ndarray], list[str]]:
    """The step from which a run would resume, its arrays, and what it says."""
    run_dir, heard = RunDir(run), Heard()
    config = run_dir.read_config()
    optimizer = make_optimizer(config.optim, config.train.max_steps)
    target = abstract_state(config.model, optimizer, make_mesh(1))
    checkpointer = Checkpointer(run_dir.checkpoints)
    found = checkpointer.restore(items_of(target), heard.say)
    checkpointer.close()
    assert found is not None
    return found.step, jax.tree.map(np.asarray, named_leaves(found.items)), heard.lines


@pytest.mark.parametrize("damage", [flip, cut, delete, fill_with_zeros])
def test_damage_in_any_file_of_the_newest_step_never_reaches_the_model(
    trained_run, tmp_path, report, damage
):
    chance, step_dir = random.Random(3), trained_run / "checkpoints" / NEWEST
    expected = {NEWEST: restored(shutil.copytree(trained_run, tmp_path / "whole"))}
    assert (expected[NEWEST][0], expected[NEWEST][2]) == (int(NEWEST), [])
    names = [str(p.relative_to(step_dir)) for p in sorted(step_dir.rglob("*")) if p.is_file()]
    older = None
    for name in names:
        run = shutil.copytree(trained_run, tmp_path / "run")
        damage(run / "checkpoints" / NEWEST / name, chance)
        items = ("params/", "averaged/", "INTEGRITY.json")  # what generating reads of it
        if name.startswith(items):
            for averaged in (True, False):
                _refuses_or_reads_elsewhere(run, name, averaged)
        step, arrays, said = restored(run)
        assert step == BEFORE, f"{name}: {said}"
        assert len(said) == 1
        assert f"checkpoint of step {NEWEST} is damaged" in said[0]
        older = older or arrays
        for leaf, value in arrays.items():
            np.testing.assert_array_equal(value, older[leaf], err_msg=f"{name}: {leaf}")
        shutil.rmtree(run)
    what = {flip: "a bit flipped", cut: "cut short", delete: "deleted", fill_with_zeros: "zeros"}
    tried = len(names)
    report(f"{what[damage]} in each file of the newest step", tried, tried, 0)


def _refuses_or_reads_elsewhere(run: Path, name: str, averaged: bool) -> None:
    """Only the other one of params and averaged can still be read."""
    if (name.startswith("params/") and averaged) or (name.startswith("averaged/") and not averaged):
        return
    with pytest.raises(UserError, match="is damaged"):
        load_run(f"{run}@{NEWEST}", averaged=averaged)

"""Checkpoints come back bit for bit, and damage is noticed, named, moved aside and survived.

Disks are made to fail for real where that is possible: bits are flipped in every file of a step,
and a save runs into a limit on file sizes.
"""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment_on

from gptjax.base.errors import UserError
from gptjax.base.tree import abstract_tree, named_leaves
from gptjax.cluster.mesh import make_mesh, replicated
from gptjax.config import OptimConfig
from gptjax.runs import checkpoint as checkpoint_module
from gptjax.runs import integrity
from gptjax.runs.checkpoint import Checkpointer, SaveError
from gptjax.runs.digests import DIGESTS, tree_digests
from gptjax.runs.integrity import INTEGRITY, sign, verify
from gptjax.runs.naming import PARAMS
from gptjax.runs.reading import RestoreError
from gptjax.training.optimizer import make_optimizer
from gptjax.training.state import TrainState, items_of, saved_items, state_of

CONFIG = {"model": {"n_layer": 2}}
LOSSES = {1: 3.0, 2: 1.0, 3: 2.0}  # of the steps in `saved`
LATE_ORBAX_THREADS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # Orbax's, after a write that failed
)


def some_state(step: int, n_devices: int = 1) -> TrainState:
    """A state whose every leaf is random, moments and counts included."""
    rng = np.random.default_rng(step)

    def fill(x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.dtype.kind == "f":
            return rng.standard_normal(x.shape).astype(x.dtype)
        return rng.integers(0, 2 if x.dtype == bool else 1000, x.shape).astype(x.dtype)

    params = {
        "wte": {"embedding": np.empty((128, 96), np.float32)},
        "h": {"mlp": {"c_fc": {"kernel": np.empty((2, 8, 32), np.float32)}}},
        "ln_f": {"scale": np.empty((8,), np.float32)},
    }
    state = TrainState(np.int32(step), params, make_optimizer(OptimConfig(), 10).init(params))
    state = jax.tree.map(fill, state)._replace(step=np.array(step, np.int32))
    return jax.device_put(state, replicated(make_mesh(n_devices)))


def save(
    checkpointer: Checkpointer, step: int, val_loss: float | None = None, **where: int
) -> None:
    cursor = {"data": "fingerprint"} | ({} if val_loss is None else {"val_loss": val_loss})
    checkpointer.save(step, saved_items(some_state(step, **where)), CONFIG, cursor)


def abstract(n_devices: int = 1) -> TrainState:
    return abstract_tree(some_state(0), replicated(make_mesh(n_devices)))


def restore(
    checkpointer: Checkpointer, say: Callable[[str], None], n_devices: int = 1
) -> tuple[TrainState, dict]:
    like = abstract(n_devices)
    restored = checkpointer.restore(items_of(like), say)
    assert restored is not None
    return state_of(restored.step, restored.items, like), restored.cursor


def assert_bitwise_same(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for name, leaf in named_leaves(got).items():
        np.testing.assert_array_equal(leaf, named_leaves(expected)[name], strict=True, err_msg=name)


def files(directory: Path) -> dict[str, bytes]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpointer = Checkpointer(directory, keep_latest=3)
    for step, loss in LOSSES.items():
        save(checkpointer, step, loss)
    checkpointer.close()
    return directory


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    """Checkpoints of steps 1, 2 and 3, to be damaged."""
    return shutil.copytree(saved_once, tmp_path / "run" / "checkpoints")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 1), (1, 8), (8, 1), (8, 2)])
def test_a_state_comes_back_bit_for_bit_on_any_number_of_devices(
    tmp_path, said, saved_on, restored_on
):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    assert checkpointer.restore(items_of(abstract()), said.append) is None
    save(checkpointer, 7, 2.5, n_devices=saved_on)
    checkpointer.close()

    reopened = Checkpointer(tmp_path / "checkpoints")
    state, cursor = restore(reopened, said.append, restored_on)
    assert_bitwise_same(state, some_state(7))
    shardings = {leaf.sharding for leaf in jax.tree.leaves(state)}
    assert shardings == {replicated(make_mesh(restored_on))}
    assert cursor.pop(DIGESTS) == tree_digests(items_of(some_state(7)))
    assert cursor == {"step": 7, "data": "fingerprint", "val_loss": 2.5}
    assert said == []


def test_the_state_may_be_overwritten_as_soon_as_save_returns(tmp_path, said):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    state = some_state(1)
    checkpointer.save(1, saved_items(state), CONFIG, {})
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    checkpointer.wait()
    restored, _ = restore(checkpointer, said.append)
    assert_bitwise_same(restored, some_state(1))


def test_the_best_and_the_latest_are_kept_also_after_reopening(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep_latest=2)
    assert checkpointer.best_step() is None
    for step, loss in enumerate([5.0, 1.0, 2.0, 4.0, 3.0], start=1):
        save(checkpointer, step, loss)
    checkpointer.close()

    reopened = Checkpointer(tmp_path / "checkpoints", keep_latest=2)
    assert reopened.steps() == [2, 4, 5]
    assert (reopened.best_step(), reopened.ranking.loss(2)) == (2, 1.0)
    save(reopened, 6)
    save(reopened, 7, 9.0)
    reopened.wait()
    assert reopened.steps() == [2, 6, 7]
    save(reopened, 8, 0.5)
    for step in (9, 10, 11):
        save(reopened, step)
    reopened.close()
    assert (reopened.steps(), reopened.best_step()) == ([8, 10, 11], 8)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")) == ["10", "11", "8"]


def test_a_checkpointer_that_is_closed_has_deleted_what_it_discarded(tmp_path, monkeypatch):
    rmtree = shutil.rmtree

    def slowly(path: Path, *args: Any, **options: Any) -> None:
        time.sleep(0.3)
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep_latest=1)
    for step in (1, 2, 3):
        save(checkpointer, step)
    checkpointer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_arrays_are_written_as_they_are(tmp_path):
    zeros = {"wte": jnp.zeros(2**18)}
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(1, {PARAMS: zeros}, CONFIG, {})
    checkpointer.close()
    written = sum(p.stat().st_size for p in (tmp_path / "checkpoints").rglob("*") if p.is_file())
    assert written >= zeros["wte"].nbytes


def test_none_goes_for_a_step_that_may_be_bad(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep_latest=1)
    save(checkpointer, 1)
    for step in (2, 3):
        checkpointer.save(step, saved_items(some_state(step)), CONFIG, {}, keeps_all=True)
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2, 3]
    save(checkpointer, 4)
    checkpointer.close()
    assert checkpointer.steps() == [4]


def test_going_back_sets_aside_what_is_later_and_verifies_what_is_left(saved, said):
    checkpointer = Checkpointer(saved, keep_latest=3)
    assert checkpointer.go_back(1, said.append) is None
    assert (checkpointer.steps(), said) == ([1, 2, 3], [])
    (saved / "2" / INTEGRITY).unlink()
    assert checkpointer.go_back(3, said.append) == 1
    checkpointer.close()
    assert (checkpointer.steps(), len(said)) == ([1], 2)
    assert sorted(p.name for p in (saved.parent / "damaged").iterdir()) == ["2", "3"]


def test_without_validation_losses_only_the_latest_are_kept_and_are_best(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep_latest=1)
    for step in (1, 2, 3):
        save(checkpointer, step)
    checkpointer.wait()
    assert checkpointer.steps() == [3]
    assert checkpointer.best_step() is None
    assert checkpointer.choose("best") == 3


def test_saving_a_step_again_changes_nothing(saved):
    before = files(saved)
    checkpointer = Checkpointer(saved, keep_latest=3)
    checkpointer.save(3, saved_items(some_state(99)), {}, {"val_loss": 0.0})
    checkpointer.close()
    assert files(saved) == before


@pytest.mark.parametrize(
    ("which", "step"), [("latest", 3), ("best", 2), ("1", 1), ("2", 2), ("3", 3)]
)
def test_choosing_a_step(saved, which, step):
    assert Checkpointer(saved, read_only=True).choose(which) == step


@pytest.mark.parametrize("which", ["4", "-1", "newest", "", "1.0"])
def test_choosing_a_step_that_is_not_there_names_those_that_are(saved, which):
    with pytest.raises(UserError, match=r"expected best, latest or one of 1, 2, 3"):
        Checkpointer(saved, read_only=True).choose(which)


def test_reading_only_creates_and_changes_nothing(saved, tmp_path):
    (saved / "4.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    before = {p: p.stat().st_mtime_ns for p in saved.parent.rglob("*")}
    checkpointer = Checkpointer(saved, read_only=True)
    checkpointer.restore_params(checkpointer.choose("latest"), abstract().params)
    checkpointer.close()
    assert {p: p.stat().st_mtime_ns for p in saved.parent.rglob("*")} == before

    nothing = Checkpointer(tmp_path / "nowhere" / "checkpoints", read_only=True)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        nothing.choose("latest")
    nothing.close()
    assert not (tmp_path / "nowhere").exists()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_flipped_bit_is_noticed_in_every_file_of_a_step(saved):
    step_dir = saved / "3"
    names = set(files(step_dir)) - {INTEGRITY}
    assert len(names) > 10
    for name in names:
        path = step_dir / name
        original = path.read_bytes()
        if original:
            flip_a_bit(path)
        else:
            path.write_bytes(b"x")
        assert verify(step_dir) == f"{name} has changed since it was written"
        path.unlink()
        assert verify(step_dir) == f"{name} is missing"
        path.write_bytes(original)
        assert verify(step_dir) is None


def truncate(step_dir: Path) -> None:
    path = largest_file(step_dir / "params")
    path.write_bytes(path.read_bytes()[:-7])


def leave_half(step_dir: Path) -> None:
    shutil.rmtree(step_dir / "opt_state")
    (step_dir / "cursor" / "metadata").unlink()


def leave_nothing(step_dir: Path) -> None:
    shutil.rmtree(step_dir)
    step_dir.mkdir()


def replace_by_directory(step_dir: Path) -> None:
    (step_dir / INTEGRITY).unlink()
    (step_dir / INTEGRITY).mkdir()


def forget_parameters(step_dir: Path) -> None:
    shutil.rmtree(step_dir / "params")
    (step_dir / INTEGRITY).unlink()
    sign(step_dir)


def sign_what_nobody_can_read(step_dir: Path) -> None:
    """Damage from before the step was signed."""
    for path in (step_dir / "params").iterdir():
        if path.is_file():
            path.write_text("{")
    (step_dir / INTEGRITY).unlink()
    sign(step_dir)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit in the parameters": (lambda d: flip_a_bit(largest_file(d / "params")), "changed"),
    "flipped bit in the moments": (lambda d: flip_a_bit(largest_file(d / "opt_state")), "changed"),
    "truncated file": (truncate, "changed"),
    "removed file": (lambda d: largest_file(d / "params").unlink(), "is missing"),
    "removed item": (lambda d: shutil.rmtree(d / "opt_state"), "is missing"),
    "removed cursor": (lambda d: (d / "cursor" / "metadata").unlink(), "is missing"),
    "unreadable signature": (lambda d: (d / INTEGRITY).write_text("{"), "is not readable"),
    "removed signature": (lambda d: (d / INTEGRITY).unlink(), f"it has no {INTEGRITY}"),
    "half-deleted directory": (leave_half, "is missing"),
    "empty directory": (leave_nothing, f"it has no {INTEGRITY}"),
    "empty signature": (lambda d: (d / INTEGRITY).write_text("{}"), "is not readable"),
    "directory for a signature": (replace_by_directory, "cannot be read: Is a directory"),
    "file of nobody": (lambda d: (d / "params" / "more").write_text(""), "params/more is not in"),
    "item that nobody signed": (forget_parameters, "params is not in"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_named_and_moved_and_the_one_before_restored(saved, said, damage):
    spoil, problem = DAMAGE[damage]
    spoil(saved / "3")
    damaged = files(saved / "3")
    checkpointer = Checkpointer(saved, keep_latest=3)
    state, cursor = restore(checkpointer, said.append)
    assert_bitwise_same(state, some_state(2))
    assert cursor["step"] == 2
    (message,) = said
    assert "checkpoint of step 3 is damaged" in message
    assert problem in message
    assert str(saved.parent / "damaged" / "3") in message
    assert files(saved.parent / "damaged" / "3") == damaged
    assert checkpointer.steps() == [1, 2]

    save(checkpointer, 3, 0.1)
    checkpointer.close()
    reopened = Checkpointer(saved, keep_latest=3)
    assert reopened.best_step() == 3
    assert_bitwise_same(restore(reopened, said.append)[0], some_state(3))
    assert len(said) == 1


@pytest.mark.parametrize("spoil", ["key", "value", "bytes"])
def test_a_best_step_with_a_damaged_cursor_is_named_kept_and_not_the_best(saved, said, spoil):
    cursor = saved / "2" / checkpoint_module.CURSOR_FILE
    text = cursor.read_text()
    wrong = {"key": '"vax_loss": 1.0', "value": '"val_loss": "x"', "bytes": "\0\0"}[spoil]
    cursor.write_text(text.replace('"val_loss": 1.0', wrong))
    assert cursor.read_text() != text
    checkpointer = Checkpointer(saved, keep_latest=1)
    assert checkpointer.best_step() == 3
    restore(checkpointer, said.append)
    assert ["checkpoint of step 2 has a damaged cursor/metadata" in line for line in said] == [True]
    for step in (4, 5):
        save(checkpointer, step, step)
    checkpointer.close()
    assert checkpointer.steps() == [2, 3, 5]

    cursor.write_text(text)
    assert Checkpointer(saved).best_step() == 2


def test_a_file_that_a_disk_does_not_give_is_damage(saved, said, monkeypatch):
    checksum = integrity._checksum

    def fail(path: Path) -> list[int]:
        if (saved / "3" / "params") in path.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return checksum(path)

    monkeypatch.setattr(integrity, "_checksum", fail)
    with pytest.raises(UserError, match=r"3 is damaged: \S+ cannot be read: Input/output error$"):
        Checkpointer(saved, read_only=True).restore_params(3, abstract().params)
    assert restore(Checkpointer(saved), said.append)[1]["step"] == 2
    assert ["cannot be read: Input/output error" in line for line in said] == [True]


def test_hidden_files_of_a_desktop_are_no_damage(saved):
    (saved / "3" / "params" / ".DS_Store").write_text("")
    assert verify(saved / "3") is None


def test_a_damaged_step_stays_where_a_file_is_in_the_way(saved, said):
    leave_nothing(saved / "3")
    (saved.parent / "damaged").write_text("")
    with pytest.raises(UserError, match=r"step 3 is damaged .* but that is a file: move it away$"):
        restore(Checkpointer(saved), said.append)
    assert (saved / "3").is_dir()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), os.strerror(errno.ENOSPC)),
        (ValueError(f"UNKNOWN: {'name ' * 99}: {os.strerror(errno.EDQUOT)} [{'x' * 400}]"),
         os.strerror(errno.EDQUOT)),
        (OSError("of no number"), "of no number (is the disk full?)"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), os.strerror(errno.EIO)),
        (ConnectionError("Connection closed by peer"), "Connection closed by peer"),
        (ValueError("first\nConnection closed by peer"), "Connection closed by peer"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_failed_save_names_the_disk_s_reason_alone(saved, monkeypatch, error, reason):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    checkpointer = Checkpointer(saved)
    monkeypatch.setattr(checkpointer._manager, "save", fail)
    with pytest.raises(SaveError) as caught:
        save(checkpointer, 4)
    assert str(caught.value).endswith(f" could not be written to {saved}: {reason}")


def test_several_damaged_steps_are_walked_past_and_none_overwrites_another(saved, said):
    for step in (2, 3):
        leave_nothing(saved / str(step))
    state, _ = restore(Checkpointer(saved), said.append)
    assert_bitwise_same(state, some_state(1))
    assert [m[:29] for m in said] == [
        "checkpoint of step 3 is damag",
        "checkpoint of step 2 is damag",
    ]

    shutil.copytree(saved / "1", saved / "3")
    flip_a_bit(largest_file(saved / "3" / "params"))
    restore(Checkpointer(saved), said.append)
    assert sorted(p.name for p in (saved.parent / "damaged").iterdir()) == ["2", "3", "3x"]


def test_what_is_whole_but_cannot_be_read_stays_where_it_is(saved, said):
    """Nobody can tell a step that is bad from a process that died, or lacks memory, reading it."""
    sign_what_nobody_can_read(saved / "3")
    before = files(saved)
    with pytest.raises(RestoreError, match=r"checkpoint \S*/3 cannot be restored") as caught:
        restore(Checkpointer(saved), said.append)
    assert caught.value.exit_code == 74
    with pytest.raises(RestoreError, match=r"checkpoint \S*/3 cannot be restored"):
        Checkpointer(saved, read_only=True).restore_params(3, abstract().params)
    assert files(saved) == before
    assert said == []


def test_what_orbax_had_not_committed_is_no_step(saved, said):
    shutil.copytree(saved / "3", saved / "4.orbax-checkpoint-tmp")
    checkpointer = Checkpointer(saved)
    assert checkpointer.steps() == [1, 2, 3]
    assert restore(checkpointer, said.append)[1]["step"] == 3
    assert said == []


def test_a_run_without_one_good_checkpoint_is_refused_and_nothing_is_deleted(saved, said):
    for step in LOSSES:
        flip_a_bit(largest_file(saved / str(step) / "params"))
    damaged = files(saved)
    with pytest.raises(UserError, match=r"none of the checkpoints .* --fresh"):
        restore(Checkpointer(saved), said.append)
    assert files(saved.parent / "damaged") == damaged
    assert len(said) == 3


@pytest.mark.parametrize("n_devices", [1, 8])
def test_parameters_are_restored_without_reading_anything_else(saved, n_devices):
    shutil.rmtree(saved / "2" / "opt_state")
    (saved / "2" / INTEGRITY).unlink()
    sign(saved / "2")
    checkpointer = Checkpointer(saved, read_only=True)
    params = checkpointer.restore_params(2, abstract(n_devices).params)
    assert_bitwise_same(params, some_state(2).params)
    assert {x.sharding for x in jax.tree.leaves(params)} == {replicated(make_mesh(n_devices))}


@pytest.mark.parametrize(
    "damage",
    ["flipped bit in the parameters", "removed signature", "removed item", "empty directory"],
)
def test_damaged_parameters_are_refused_and_left_where_they_are(saved, damage):
    spoil, problem = DAMAGE[damage]
    spoil(saved / "2")
    with pytest.raises(UserError, match=f"checkpoints/2 is damaged: .*{problem}"):
        Checkpointer(saved, read_only=True).restore_params(2, abstract().params)
    assert (saved / "2").is_dir()


def digests_of_another(step_dir: Path) -> None:
    """What went wrong between the devices and the files, and was signed."""
    cursor = step_dir / checkpoint_module.CURSOR_FILE
    content = json.loads(cursor.read_text())
    content[DIGESTS]["opt_state"] ^= 1
    content[DIGESTS]["params"] ^= 1
    cursor.write_text(json.dumps(content))
    (step_dir / INTEGRITY).unlink()
    sign(step_dir)


def test_what_is_signed_but_not_what_was_in_memory_never_reaches_a_model(saved, said):
    digests_of_another(saved / "3")
    with pytest.raises(UserError, match=r"/3 is damaged: params is not what was saved") as caught:
        Checkpointer(saved, read_only=True).restore_params(3, abstract().params)
    assert caught.value.exit_code == 1
    checkpointer = Checkpointer(saved)
    state, cursor = restore(checkpointer, said.append)
    assert_bitwise_same(state, some_state(2))
    assert (cursor["step"], checkpointer.steps()) == (2, [1, 2])
    assert ["is not what was saved" in line for line in said] == [True]
    assert (saved.parent / "damaged" / "3").is_dir()


def test_parameters_are_compared_as_they_were_saved_and_come_in_the_type_asked_for(saved):
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=x.sharding), abstract().params
    )
    params = Checkpointer(saved, read_only=True).restore_params(3, like)
    assert_bitwise_same(params, jax.tree.map(lambda x: x.astype("bfloat16"), some_state(3).params))
    digests_of_another(saved / "3")
    with pytest.raises(UserError, match="is not what was saved"):
        Checkpointer(saved, read_only=True).restore_params(3, like)


def as_of_an_earlier_version(step_dir: Path) -> None:
    """Without a mark, and killed before it was signed."""
    cursor = step_dir / checkpoint_module.CURSOR_FILE
    content = json.loads(cursor.read_text())
    del content[DIGESTS]
    cursor.write_text(json.dumps(content))
    (step_dir / INTEGRITY).unlink()


def test_unsigned_steps_of_earlier_versions_are_signed_on_first_sight(saved, said, capsys):
    for step in ("2", "3"):
        as_of_an_earlier_version(saved / step)
    before = files(saved)
    params = Checkpointer(saved, read_only=True).restore_params(3, abstract().params)
    assert_bitwise_same(params, some_state(3).params)
    assert "3 was saved by an earlier version" in capsys.readouterr().err
    assert files(saved) == before

    checkpointer = Checkpointer(saved)
    assert_bitwise_same(restore(checkpointer, said.append)[0], some_state(3))
    assert [line[:20] for line in said] == ["checkpoint of step 2", "checkpoint of step 3"]
    assert all("could not be verified. It is signed now" in line for line in said)
    assert [verify(saved / step) for step in ("2", "3")] == [None, None]
    assert checkpointer.best_step() == 2
    flip_a_bit(largest_file(saved / "3" / "params"))
    assert restore(Checkpointer(saved), said.append)[1]["step"] == 2
    assert "3 is damaged" in said[-1]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def poll_for_ten_seconds(checkpointer: Checkpointer) -> None:
    for _ in range(1000):
        checkpointer.poll()
        time.sleep(0.01)


@LATE_ORBAX_THREADS
def test_a_save_that_fails_in_the_background_surfaces_and_can_be_done_again(saved, said):
    checkpointer = Checkpointer(saved, keep_latest=3)
    with file_size_limit(10_000):
        save(checkpointer, 4, 0.1)
        with pytest.raises(SaveError, match="checkpoint of step 4 could not be written"):
            poll_for_ten_seconds(checkpointer)
    assert checkpointer.steps() == [1, 2, 3]
    assert (checkpointer.best_step(), checkpointer.ranking.loss(2)) == (2, 1.0)
    checkpointer.poll()
    save(checkpointer, 4, 0.1)
    checkpointer.close()

    reopened = Checkpointer(saved, keep_latest=3)
    assert reopened.steps() == [2, 3, 4]
    assert verify(saved / "4") is None
    assert_bitwise_same(restore(reopened, said.append)[0], some_state(4))
    assert said == []


@LATE_ORBAX_THREADS
def test_without_polling_the_next_save_tells_of_the_failed_one(saved):
    checkpointer = Checkpointer(saved, keep_latest=3)
    with file_size_limit(10_000):
        save(checkpointer, 4)
        with pytest.raises(SaveError, match="checkpoint of step 4 could not be written"):
            save(checkpointer, 5)
    save(checkpointer, 5)
    checkpointer.close()
    assert Checkpointer(saved).steps() == [2, 3, 5]


@LATE_ORBAX_THREADS
def test_a_step_that_cannot_be_signed_is_none_and_surfaces_through_poll(saved, monkeypatch):
    def fail(_: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(integrity, "sign", fail)
    checkpointer = Checkpointer(saved)
    save(checkpointer, 4)
    with pytest.raises(SaveError, match=r"step 4 could not be written .* no space left on device"):
        poll_for_ten_seconds(checkpointer)
    assert checkpointer.steps() == [1, 2, 3]
    monkeypatch.undo()
    save(checkpointer, 5)
    checkpointer.close()
    assert Checkpointer(saved).steps() == [2, 3, 5]


@LATE_ORBAX_THREADS
def test_errors_of_a_save_are_told_once_and_other_libraries_may_log(saved, caplog):
    checkpointer = Checkpointer(saved)
    with file_size_limit(10_000):
        save(checkpointer, 4)
        with pytest.raises(SaveError):
            checkpointer.wait()
    checkpointer.close()
    assert caplog.records == []
    for name in ("absl", "asyncio"):
        logging.getLogger(name).error("heard")
    assert caplog.messages == ["heard", "heard"]


KILLED_AFTER_THE_COMMIT = """
import os, pathlib, signal, sys
import numpy as np
from gptjax.runs.checkpoint import Checkpointer
rename = os.rename
def rename_and_die(source, target, **where):
    rename(source, target, **where)
    if pathlib.Path(target).name == "1":
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename_and_die
checkpointer = Checkpointer(pathlib.Path(sys.argv[1]))
checkpointer.save(1, {"params": {"x": np.arange(64)}}, {}, {})
checkpointer.close()
"""


def test_a_step_is_signed_from_the_moment_it_exists(tmp_path):
    command = [sys.executable, "-c", KILLED_AFTER_THE_COMMIT, str(tmp_path / "checkpoints")]
    result = subprocess.run(command, env=environment_on(1), capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert [p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")] == ["1"]
    assert verify(tmp_path / "checkpoints" / "1") is None
    like = {"params": {"x": np.zeros(64, np.int64)}}
    restored = Checkpointer(tmp_path / "checkpoints").restore(like, print)
    assert restored is not None
    np.testing.assert_array_equal(restored.items["params"]["x"], np.arange(64))

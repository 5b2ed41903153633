"""Checkpoints in a store: whole, signed, committed last; here a directory, elsewhere S3."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.cluster.phases import Phases
from gptjax.cluster.watchdog import Watchdog
from gptjax.runs import mirror as mirror_module
from gptjax.runs.directory import STORE, RunDir
from gptjax.runs.incidents import write_incidents
from gptjax.runs.integrity import INTEGRITY, sign
from gptjax.runs.mirror import Mirror
from gptjax.runs.ranking import Ranking
from gptjax.runs.store import Store, StoreError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mirror_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(mirror_module, "PATIENCE", 0.2)


def run_in(path: Path) -> RunDir:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    (path / "log.txt").write_text("private\n")
    return RunDir(path)


def saved(run: RunDir, step: int, loss: float | None = None) -> Path:
    """A signed step; the rename makes it appear as a whole, as Orbax's does."""
    place = run.path / f"new{step}"
    (place / "params" / "d").mkdir(parents=True)
    (place / "params" / "d" / "data").write_bytes(bytes([step]) * 1000)
    (place / "cursor").mkdir()
    (place / "cursor" / "metadata").write_text(json.dumps({"step": step}))
    sign(place)
    if loss is not None:
        ranking = Ranking.of(run.checkpoints, run.steps())
        ranking.note(step, {"val_loss": loss})
        ranking.write(run.path)
    return place.rename(run.checkpoints / str(step))


def copy(mirror: Mirror, said: list[str]) -> None:
    """Copy all that is missing, as the end of a run does."""
    with mirror.copying(said.append, Phases(Watchdog(0))) as copied:
        copied()


@pytest.fixture
def url(tmp_path) -> str:
    return str(tmp_path / "store")


def test_a_step_comes_back_as_it_was_put_and_damage_is_found(tmp_path, url):
    run, store = run_in(tmp_path / "run"), Store(url)
    place = saved(run, 3)
    store.put_step(place)
    assert store.steps() == [3]
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    target = tmp_path / "other" / "checkpoints" / "3"
    assert store.get_step(3, target) is None
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()
    }
    shutil.rmtree(target)
    data = Path(url) / "checkpoints" / "3" / "params" / "d" / "data"
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    assert store.get_step(3, target) == "params/d/data has changed since it was written"
    data.unlink()
    assert store.get_step(3, target) == "params/d/data is missing"
    assert [*target.parent.parent.rglob("*")] == [target.parent]


def test_a_step_is_there_only_once_it_is_whole(tmp_path, url, monkeypatch):
    run, store = run_in(tmp_path / "run"), Store(url)
    place, put = saved(run, 3), Store._put

    def broken(self: Store, source: Path, path: str) -> None:
        if source.name == INTEGRITY:
            raise OSError("the line is cut")
        put(self, source, path)

    monkeypatch.setattr(Store, "_put", broken)
    with pytest.raises(StoreError, match=r"cannot write step 3 at .*: OSError: the line is cut"):
        store.put_step(place)
    assert store.steps() == []
    monkeypatch.undo()
    store.put_step(place)
    store.delete_step(3)
    assert store.steps() == []


def test_the_newest_the_best_and_milestones_stay_in_a_store(tmp_path, url):
    run, said = run_in(tmp_path / "run"), []
    mirror = Mirror(url, run, keep_every_steps=10)
    assert mirror.open(fresh=False) == []
    for step, loss in ((5, 0.1), (10, 0.5), (15, None), (20, None), (25, None)):
        saved(run, step, loss)
        copy(mirror, said)
        mirror._closed.clear()
        if step == 15:  # no milestone, and not the best
            shutil.rmtree(run.checkpoints / "15")
        if step == 10:
            shutil.rmtree(run.checkpoints / "10")
    assert Store(url).steps() == [5, 10, 20, 25]
    names = {path.name for path in (Path(url) / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "ranking.json"}
    assert said == []
    assert not (run.path / mirror_module.LEAVING).exists()


def test_a_start_that_copies_nothing_takes_nothing_over(tmp_path, url):
    run, said = run_in(tmp_path / "run"), []
    mirror = Mirror(url, run)
    mirror.open(fresh=False)
    saved(run, 5)
    copy(mirror, said)
    refused = Mirror(url, RunDir(tmp_path / "other"))
    refused.open(fresh=False)
    copy(refused, said)  # it ends before its first step
    saved(run, 10)
    mirror._closed.clear()
    copy(mirror, said)
    assert (Store(url).steps(), said) == ([5, 10], [])


def test_of_two_new_runs_with_one_store_only_the_first_copies(tmp_path, url):
    first, second = (Mirror(url, run_in(tmp_path / name)) for name in ("one", "two"))
    for mirror in (first, second):
        mirror.open(fresh=False)
        saved(mirror._run, 5)
    copy(first, [])
    with pytest.raises(UserError, match="another process has taken over"):
        copy(second, [])
    assert (tmp_path / "two" / "checkpoints" / "5").exists()


def test_another_machine_takes_over_and_the_first_stops_copying(tmp_path, url):
    run, said = run_in(tmp_path / "run"), []
    mirror = Mirror(url, run)
    mirror.open(fresh=False)
    saved(run, 5, 0.1), saved(run, 10, 0.5), saved(run, 15)
    copy(mirror, said)
    damaged = Path(url) / "checkpoints" / "15" / "params" / "d" / "data"
    damaged.write_bytes(b"\0" * 1000)

    other = RunDir(tmp_path / "other")
    notes = Mirror(url, other).open(fresh=False)
    assert notes == [
        f"checkpoint of step 15 in {url} is damaged: params/d/data has changed since it was "
        "written",
        f"step 10 was brought from {url}",
    ]
    assert other.steps() == [5, 10]  # the best as well
    assert other.metrics.read_bytes() == run.metrics.read_bytes()
    assert not other.log.exists()
    saved(run, 20)
    mirror._closed.clear()
    copy(mirror, said)  # the other may still be refused, so the store is not its own yet
    assert 20 in Store(url).steps()
    second = Mirror(url, other)
    assert second.open(fresh=False) == [f"step 20 was brought from {url}"]
    saved(other, 24)
    copy(second, said)
    saved(run, 25)
    mirror._closed.clear()
    with pytest.raises(UserError, match="another process has taken over"):
        copy(mirror, said)
    assert 25 not in Store(url).steps()
    with pytest.raises(UserError, match=r"another machine has taken over .* move .* away"):
        Mirror(url, run).open(fresh=False)


def test_steps_from_which_a_run_went_back_leave_the_store_and_do_not_return(tmp_path, url):
    run, said = run_in(tmp_path / "run"), []
    mirror = Mirror(url, run)
    mirror.open(fresh=False)
    for step in (5, 10, 15):
        saved(run, step)
    copy(mirror, said)
    undecided = {"kind": "rollback", "steps": [9, 13], "before": 8, "rows": 130, "to": None}
    write_incidents(run.path, [undecided])
    for step in (10, 15):
        (run.checkpoints / str(step)).rename(run.path / f"aside{step}")
    mirror._closed.clear()
    copy(mirror, said)
    assert Store(url).steps() == [5, 10, 15]
    write_incidents(run.path, [undecided | {"to": 5}])
    assert Mirror(url, run).open(fresh=False) == []
    assert Store(url).steps() == [5]
    place = saved(run, 10)
    (place / "params" / "d" / "data").write_bytes(b"other")
    sign(place)
    again = Mirror(url, run)
    assert again.open(fresh=False) == []
    copy(again, said)
    assert Store(url).steps() == [5, 10]
    assert (Path(url) / "checkpoints/10/params/d/data").read_bytes() == b"other"
    assert said == []


@pytest.mark.parametrize("fresh", [True, False])
def test_a_store_with_another_run_is_refused(tmp_path, url, fresh):
    mirror = Mirror(url, run_in(tmp_path / "run"))
    mirror.open(fresh=False)
    saved(mirror._run, 1)
    assert Store(url).read("owner") is None
    copy(mirror, [])
    other = RunDir(tmp_path / "other")
    if not fresh:
        saved(run_in(other.path), 1)
    with pytest.raises(UserError, match="holds checkpoints"):
        Mirror(url, other).open(fresh)
    assert not (other.path / STORE).exists()


def test_a_store_that_fails_is_said_once_and_the_end_waits_in_vain(tmp_path, url, monkeypatch):
    run, said = run_in(tmp_path / "run"), []
    mirror = Mirror(url, run)
    mirror.open(fresh=False)

    def broken(*_: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr(Store, "put_step", broken)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE", 0.02)
    saved(run, 5)

    def run_on() -> None:
        with mirror.copying(said.append, Phases(Watchdog(0))) as copied:
            while not said:
                pass
            copied()

    with pytest.raises(StoreError, match=r"no answer\. All checkpoints are in .*: rerun the same"):
        run_on()
    assert said[0] == "no answer. The run goes on, and tries again"
    assert said[1] == "no answer. The end waits for it, 0 seconds at most"
    assert len(said) == 2
    assert run.steps() == [5]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("foo://bucket/x", "is no address of a store: give s3://BUCKET"),
        ("memory://x", "is no address"), ("s3://", "is no address"), ("", "is no address"),
        ("gs://bucket/x", "needs the package gcsfs"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused(address, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=words):
        Store(address)


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "."])
def test_a_store_inside_the_run_or_around_it_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="lie in each other: give a directory of another disk"):
        Mirror(str(tmp_path / name), RunDir(tmp_path / "run"))

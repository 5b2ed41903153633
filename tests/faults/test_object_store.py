"""Checkpoints in an S3-compatible store: a lost machine, and a store that is late or refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
from killed_runs import assert_same_run, ended, rows, start, trained, written
from s3_server import LATE, REFUSES, S3, s3_server

from gptjax.runs import mirror as mirror_module
from gptjax.runs.store import Store, StoreError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
STEPS = 40


@pytest.fixture(scope="module")
def s3():
    with s3_server() as store:
        yield store


@pytest.fixture
def url(tmp_path) -> str:
    return f"s3://bucket/{tmp_path.name}"


def options(data, *more: object) -> list[str]:
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.unroll", 1, "--train.max-steps", STEPS, "--optim.warmup-steps", 5),
        *("--train.save-every-steps", 5, "--train.eval-every-steps", 10, *more),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("unbroken")
    trained(options(prepared), cwd)
    return cwd


def test_another_machine_goes_on_where_a_lost_one_was(
    prepared, tmp_path, unbroken, s3, url, report
):
    lost, new = tmp_path / "lost", tmp_path / "new"
    lost.mkdir(), new.mkdir()
    args = options(prepared, "--train.checkpoint-dir", url)
    process = start(args, lost)
    store = Store(url)
    while process.poll() is None and not (store.steps() and written(lost) > 12):
        pass
    process.kill()
    ended(process)
    saved = store.steps()[-1]
    shutil.rmtree(lost)
    said = trained(args, new)
    (brought,) = re.findall(rf"step (\d+) was brought from {url}", said)
    assert rows(new)[-1]["step"] == STEPS
    assert_same_run(new, unbroken)
    assert store.steps()[-1] == STEPS
    report("machine lost with its disk, checkpoints in S3", lost=saved - int(brought))


@pytest.mark.parametrize("mode", [LATE, REFUSES])
def test_a_store_that_is_late_or_refuses_costs_no_step(
    mode, prepared, tmp_path, unbroken, s3: S3, url, report
):
    process = start(options(prepared, "--train.checkpoint-dir", url), tmp_path)
    while process.poll() is None and written(tmp_path) < 3:
        pass
    s3.during(mode, lambda: written(tmp_path) >= STEPS)
    code, said = ended(process)
    assert code == 0, said
    assert_same_run(tmp_path, unbroken)
    assert Store(url).steps()[-1] == STEPS
    report(f"object store {mode}")


def test_a_store_that_stays_away_ends_the_run_with_all_its_checkpoints(
    prepared, tmp_path, unbroken, s3: S3, url, report
):
    args = options(prepared, "--train.checkpoint-dir", url)
    impatient = f"import {mirror_module.__name__} as m; m.PATIENCE = 2"
    process = start(args, tmp_path, 1, impatient)
    while process.poll() is None and written(tmp_path) < 3:
        pass
    s3.mode = REFUSES
    try:
        code, said = ended(process)
    finally:
        s3.mode = "works"
    assert (code, written(tmp_path)) == (StoreError.exit_code, STEPS), said
    assert "rerun the same command to copy them" in said
    accounts = json.loads((tmp_path / "run" / "accounts.json").read_text())
    assert accounts["starts"][-1]["exit"] == code
    assert accounts["starts"][-1]["seconds"]["saving"] > 2  # the end, which waited in vain
    assert "is complete at step" in trained(args, tmp_path)
    assert Store(url).steps()[-1] == STEPS
    assert_same_run(tmp_path, unbroken)
    owner = json.loads((tmp_path / "run" / "store.json").read_text())["owner"]
    assert Store(url).read("owner") == owner.encode()
    report("object store away for good: 74, and copied by the next start")

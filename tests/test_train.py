"""`python -m gptjax.train` as a user meets it: files, messages, exit codes of whole processes."""

import asyncio
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import environment_on, run_verb, without_speed

from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest
from gptjax.data.shards import HEADER_BYTES
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.runs.directory import LOCK
from gptjax.train import train

pytestmark = pytest.mark.usefixtures("one_compilation_for_all")
STEPS = 12
TINY = [
    *("--config", "tiny", "--run-dir", "run"),
    *("--train.max-steps", STEPS, "--optim.warmup-steps", 3),
    *("--train.eval-every-steps", 5, "--train.save-every-steps", 4),
    *("--train.sample-every-steps", 6, "--sample.max-new-tokens", 8),
]  # a later value of a flag wins over an earlier one


@pytest.fixture(scope="module")
def finished_once(prepared: Manifest, tmp_path_factory) -> Path:
    """The working directory of a run that is complete."""
    directory = tmp_path_factory.mktemp("finished")
    result = run_verb("train", *TINY, "--data.path", prepared.directory, cwd=directory)
    assert result.returncode == 0, result.stderr
    (directory / "stdout.txt").write_text(result.stdout)
    return directory


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    """A copy of that directory, to go on with."""
    return shutil.copytree(finished_once, tmp_path / "work")


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "run/metrics.jsonl").read_text().splitlines()]


def files(directory: Path) -> dict[str, bytes]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(directory)): p.read_bytes() for p in paths}


def assert_refused(result, *words: str) -> None:
    """A message on standard error that has these words, exit code 1 and no traceback."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "error: " in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_every_step_has_one_row_with_the_promised_numbers(finished_once):
    found = rows(finished_once)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    for row in found:
        assert {"train_loss", "learning_rate", "grad_norm"} <= set(row)
        assert ("val_loss" in row) == (row["step"] in (5, 10, STEPS))
        assert all(map(math.isfinite, [*row.pop("seconds", {}).values(), *row.values()]))
    for row in found[4], found[9], found[11]:
        assert row["val_stderr"] > 0
        # a token is a byte here, and end-of-text is no byte of text
        assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2), rel=0.01)
    assert found[0]["learning_rate"] == pytest.approx(3e-3 / 4)
    assert found[3]["learning_rate"] == pytest.approx(3e-3)
    assert found[0]["train_loss"] == pytest.approx(math.log(257), rel=0.03)
    assert found[-1]["train_loss"] < found[0]["train_loss"] - 0.5


@pytest.mark.slow
def test_a_run_directory_holds_what_is_promised(finished_once):
    run = finished_once / "run"
    assert sorted(p.name for p in run.iterdir() if p.name != LOCK) == [
        "accounts.json", "checkpoints", "config.json", "log.txt", "loss.png", "metrics.jsonl",
        "ranking.json", "report.html", "results.json", "samples.md", "tokenizer.json",
    ]  # fmt: skip
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = matplotlib.image.imread(run / "loss.png")
    assert np.ptp(picture[..., :3]) > 0.5
    headings = re.findall(r"^## step (\d+)$", (run / "samples.md").read_text(), re.MULTILINE)
    assert headings == ["6", "12"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "12"]
    assert "done: 12 steps" in (finished_once / "stdout.txt").read_text()


@pytest.mark.slow
def test_running_again_says_that_the_run_is_complete(finished, prepared):
    before = files(finished / "run")
    result = run_verb("train", *TINY, "--data.path", prepared.directory, cwd=finished)
    assert result.returncode == 0
    assert "run is complete at step 12: " in result.stdout
    assert "--optim.decay-steps 12" in result.stdout  # none of them makes the rate jump
    assert "--optim.rewarm-steps 12" in result.stdout
    after = files(finished / "run")
    assert {k for k in after if after[k] != before.get(k)} == {"log.txt"}
    assert set(after) == set(before)


@pytest.mark.slow
def test_raising_max_steps_goes_on(finished, prepared):
    before = rows(finished)
    options = [*TINY, "--data.path", prepared.directory, "--train.max-steps", 15]
    result = run_verb("train", *options, cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "resuming run after step 12" in result.stdout
    assert "  announced  train.max_steps  12  -> 15\n" in result.stdout
    assert rows(finished)[:STEPS] == before
    assert [row["step"] for row in rows(finished)] == list(range(1, 16))


@pytest.mark.slow
def test_fresh_starts_over_and_keeps_the_old_run(finished, prepared):
    before, old_rows = files(finished / "run"), rows(finished)
    options = [*TINY, "--data.path", prepared.directory, "--fresh"]
    result = run_verb("train", *options, cwd=finished)
    assert result.returncode == 0, result.stderr
    (kept,) = finished.glob("run.*")
    assert files(kept) == before
    assert re.search(rf"the old run is kept in \S*{re.escape(kept.name)}\n", result.stdout)
    for old, new in zip(old_rows, rows(finished), strict=True):
        old, new = without_speed(old), without_speed(new)
        assert new == old


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.n-embd", 64], "model.n_embd  32  -> 64"),
        (["--model.n-layer", 3], "model.n_layer  2  -> 3"),
        (["--model.no-tied-head"], "model.tied_head  True  -> False"),
        (["--train.seed", 5], "train.seed  1337  -> 5"),
    ],
)
def test_what_decides_the_parameters_may_not_change(finished, prepared, flags, words):
    before = files(finished)
    options = [*TINY, "--data.path", prepared.directory, *flags]
    assert_refused(run_verb("train", *options, cwd=finished), words, "--fresh")
    assert files(finished) == before


@pytest.mark.slow
def test_other_data_is_refused_and_leaves_the_run_as_it_is(finished, text_file, tmp_path):
    other_text = tmp_path / "other.txt"
    other_text.write_text(text_file.read_text()[::-1])
    data = DataConfig(path=str(tmp_path / "other"), inputs=(str(other_text),), val_fraction=0.1)
    prepare_shards(data, text_files(data.inputs))
    before = files(finished / "run")
    result = run_verb("train", *TINY, "--data.path", data.path, cwd=finished)
    assert_refused(result, "was trained on other data", data.path, "--fresh")
    after = files(finished / "run")
    assert {k for k in after if after[k] != before.get(k)} <= {"log.txt"}


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_has_an_exit_code_of_its_own(prepared, tmp_path):
    """Told from a mistake, which is not worth another attempt."""
    script = (
        "import sys, gptjax.training.fit as module, gptjax.train as verb\n"
        "module.fit = lambda *_: 1 // 0\n"
        "verb.main(verb.train)"
    )
    words = [sys.executable, "-c", script, "--config", "tiny"]
    words += ["--data.path", str(prepared.directory)]
    result = subprocess.run(
        words, cwd=tmp_path, env=environment_on(1), capture_output=True, text=True
    )
    assert result.returncode == 70
    assert result.stderr.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")


@pytest.mark.slow
def test_the_verb_is_a_function_in_a_thread_and_in_a_running_event_loop(prepared, tmp_path):
    codes = []

    async def cell(name: str) -> None:
        flags = ["--config", "tiny", "--data.path", str(prepared.directory)]
        flags += ["--train.max-steps", "2", "--optim.warmup-steps", "1"]
        codes.append(train([*flags, "--run-dir", str(tmp_path / name)]))

    for name in ("first", "second"):
        thread = threading.Thread(target=asyncio.run, args=(cell(name),))
        thread.start()
        thread.join()
    asyncio.run(cell("third"))
    assert codes == [0, 0, 0]


def test_half_of_a_place_among_processes_is_refused_before_anything_starts(tmp_path):
    flags = ["--config", "quickstart", "--processes", 2, "--process", 1]
    assert_refused(run_verb("train", *flags, cwd=tmp_path), "--processes needs --coordinator")
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_answered_with_the_command_that_makes_it(tmp_path):
    result = run_verb("train", "--config", "shakespeare", cwd=tmp_path)
    assert_refused(
        result,
        "there is no prepared data in",
        "`python -m gptjax.prepare --config shakespeare --input",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def damaged(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared.directory, tmp_path / "damaged")


def test_a_truncated_shard_is_named(damaged, tmp_path):
    shard = damaged / "train_000003.bin"
    os.truncate(shard, shard.stat().st_size - 2)
    result = run_verb("train", *TINY, "--data.path", damaged, cwd=tmp_path)
    assert_refused(result, f"shard {shard} is truncated", "prepare the data again")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_token_outside_the_vocabulary_is_named_when_it_is_met(damaged, tmp_path):
    for shard in damaged.glob("train_*.bin"):
        tokens = np.fromfile(shard, "<u2", offset=HEADER_BYTES)
        header = shard.read_bytes()[:HEADER_BYTES]
        tokens[100::200] = 300
        shard.write_bytes(header + tokens.tobytes())
    unseen = ["--data.verify", "off"]
    result = run_verb("train", *TINY, "--data.path", damaged, *unseen, cwd=tmp_path)
    assert_refused(result, f"shard {damaged}/train_", "holds token id 300", "ends at 256")


@pytest.mark.slow
def test_losses_on_eight_devices_are_those_on_one(finished_once, prepared, tmp_path):
    options = [*TINY, "--data.path", prepared.directory]
    result = run_verb("train", *options, cwd=tmp_path, devices=8)
    assert result.returncode == 0, result.stderr
    assert "1 micro-steps x 8 devices x 1 sequences x 64 tokens = 512 tokens" in result.stdout
    for one, eight in zip(rows(finished_once), rows(tmp_path), strict=True):
        one, eight = without_speed(one), without_speed(eight)
        if "val_stderr" in one:  # a small difference of large sums
            assert eight.pop("val_stderr") == pytest.approx(one.pop("val_stderr"), rel=1e-2)
        assert eight == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_a_micro_batch_of_its_own_choice_gives_the_same_losses(finished_once, prepared, tmp_path):
    options = [*TINY, "--data.path", prepared.directory, "--train.micro-batch", "auto"]
    result = run_verb("train", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 micro-steps x 1 devices x 8 sequences x 64 tokens = 512 tokens" in result.stdout
    assert "(auto: the largest that fits: 0.0" in result.stdout
    assert "2 micro-steps x 1 devices x 4 sequences" in (finished_once / "stdout.txt").read_text()
    for given, chosen in zip(rows(finished_once), rows(tmp_path), strict=True):
        for name in {"train_loss", "val_loss", "tokens"} & set(given):
            assert chosen[name] == pytest.approx(given[name], rel=1e-5)


@pytest.mark.slow
def test_what_does_not_go_together_is_refused_before_anything_starts(tmp_path):
    flags = ["--train.ramp-steps", 3, "--optim.ema-decay", 2, "--model.attention", "cudnn"]
    result = run_verb("train", *TINY, *flags, cwd=tmp_path)
    assert result.returncode == 2
    for word in ("3 problems", "train.ramp_from_tokens", "optim.ema_decay", "model.attention"):
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_has_diverged_gives_up(prepared, tmp_path):
    options = [*TINY, "--data.path", prepared.directory, "--optim.peak-lr", 1e37]
    options += ["--train.max-steps", 40, "--train.eval-every-steps", 0]
    result = run_verb("train", *options, cwd=tmp_path)
    assert_refused(result, "20 steps in a row had gradients that are not finite")
    assert "was skipped: its gradients are not finite" in result.stdout
    skipped = [row for row in rows(tmp_path) if "grad_norm" not in row]
    assert len(skipped) == 19


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_and_a_later_start_finishes_it(
    finished_once, prepared, tmp_path
):
    options = [*TINY, "--data.path", prepared.directory, "--train.save-every-minutes", 0.05]
    options += ["--train.preflight", "off"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no checkpoint fits, logs do
    try:
        result = run_verb("train", *options, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.returncode == 74
    message = r"error: the checkpoint of step \d+ could not be written to .*"
    assert len(re.findall(message, result.stderr)) == 1
    assert "Training goes on, and the save is tried again as soon as 15 s have passed" in (
        result.stdout
    )
    assert "Traceback" not in result.stdout + result.stderr
    assert "closed" not in result.stderr

    result = run_verb("train", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    losses = [row["train_loss"] for row in rows(tmp_path)]
    assert losses == [row["train_loss"] for row in rows(finished_once)]

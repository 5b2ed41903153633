"""A classification from start to results.json: killed, ended early, by two processes."""

import json
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment_on, run_verb, without_speed
from labelled_texts import flags_of, write_messages

from gptjax.base.tree import named_leaves
from gptjax.config import TrainConfig
from gptjax.conversion.opening import load_run
from gptjax.evaluation.labels import Classifier
from gptjax.runs.ranking import Ranking
from gptjax.training.patience import early_end
from gptjax.training.replaying import replay

TEXTS = ["win a free prize 3", "call me later 5 ok ok ok ok ok ok ok", "x"]


def rows_of(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


def results_of(run: Path) -> dict:
    """Without the account of its hours."""
    return without_speed(json.loads((run / "results.json").read_bytes()))


def command(kill_after: int, flags: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "second_task.py"), str(kill_after), *flags]


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> Path:
    return write_messages(tmp_path_factory.mktemp("messages") / "messages.tsv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, messages, one_compilation_for_all) -> Path:
    """A run that nothing has broken."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        command(0, flags_of(messages, run)), env=environment_on(1), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--classify" in done.stdout
    return run


@pytest.mark.slow
def test_a_killed_classification_goes_on_bit_for_bit(tmp_path, messages, whole):
    killed = tmp_path / "run"
    train = [command(after, flags_of(messages, killed)) for after in (8, 0)]
    codes = [subprocess.run(words, env=environment_on(1)).returncode for words in train]
    assert codes == [-signal.SIGKILL, 0]
    assert (killed / "log.txt").read_text().count("resuming") == 1
    assert rows_of(killed) == rows_of(whole)
    assert results_of(killed) == results_of(whole)
    ours, theirs = (named_leaves(load_run(f"{run}@latest").params) for run in (killed, whole))
    for name, leaf in ours.items():
        assert np.array_equal(leaf, theirs[name]), name


@pytest.mark.slow
def test_results_are_of_the_best_checkpoint_and_are_written_at_the_next_start(messages, whole):
    found, rows = results_of(whole), {row["step"]: row for row in rows_of(whole)}
    validated = {step: row["val_accuracy"] for step, row in rows.items() if "val_loss" in row}
    best = max(validated.values())
    assert found["step"] in [step for step, value in validated.items() if value == best]
    assert found["val_loss"] == rows[found["step"]]["val_loss"]
    assert found["val_accuracy"] == rows[found["step"]]["val_accuracy"]
    assert found["val_confusion"] == rows[found["step"]]["val_confusion"]
    assert np.sum(found["confusion"]) == found["test_examples"] == 12
    assert found["test_f1"] == found["test_f1_by_class"]["spam"]
    assert (whole / "confusion.png").read_bytes().startswith(b"\x89PNG")

    before = results_of(whole)
    (whole / "results.json").unlink()
    again = run_verb("train", *flags_of(messages, whole), cwd=whole.parent)
    assert again.returncode == 0, again.stderr
    assert "is complete at step 18" in again.stdout
    assert results_of(whole) == before


@pytest.mark.slow
def test_evaluate_and_generate_agree_with_the_results(tmp_path, messages, whole):
    words = [
        "--run",
        whole,
        "--on",
        "labels",
        "--data",
        messages,
        "--json",
        tmp_path / "found.json",
    ]
    done = run_verb("evaluate", *words, "--split", "test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, results = json.loads((tmp_path / "found.json").read_text()), results_of(whole)
    assert found["accuracy"] == results["test_accuracy"]
    assert found["confusion"] == results["confusion"]
    assert "<- guess" in done.stdout
    done = run_verb("generate", "--run", whole, "--classify", TEXTS[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (probs_C,) = Classifier(load_run(whole)).of_texts([TEXTS[:1]])
    first, *rest = done.stdout.splitlines()
    assert first == ("ham", "spam")[int(probs_C.argmax())]
    assert {line.split()[0] for line in rest} == {"ham", "spam"}
    two = run_verb("generate", "--run", whole, "--classify", "a", "b", cwd=tmp_path)
    assert two.returncode != 0
    assert "reads one text an example" in two.stderr


@pytest.mark.slow
def test_probabilities_do_not_depend_on_the_other_texts_or_the_batch(whole):
    run = load_run(whole)
    together = Classifier(run, batch_rows=2).of_texts([[text] for text in TEXTS])
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-6)
    for text, probs_C in zip(TEXTS, together, strict=True):
        alone = Classifier(run, batch_rows=5).of_texts([[text]])[0]
        np.testing.assert_allclose(alone, probs_C, atol=1e-6)


@pytest.mark.slow
def test_patience_ends_a_run_alike_however_often_it_was_killed(tmp_path, messages, whole):
    fields = {"optim__peak-lr": 1e-30, "optim__final-lr": 0, "train__epochs": 9}
    runs = [tmp_path / name for name in ("unbroken", "killed")]
    flags = [flags_of(messages, run, train__patience=2, **fields) for run in runs]
    tries = [(0, flags[0]), (8, flags[1]), (0, flags[1])]
    done = [
        subprocess.run(command(*given), env=environment_on(1), capture_output=True, text=True)
        for given in tries
    ]
    assert [process.returncode for process in done] == [0, -signal.SIGKILL, 0], done[-1].stderr
    assert "ended before step 54 by train.patience" in done[0].stdout
    assert rows_of(runs[0]) == rows_of(runs[1])
    assert rows_of(runs[0])[-1]["step"] == 18  # three epochs: the first and two no better
    assert results_of(runs[0]) == results_of(runs[1])
    assert (results_of(runs[0])["step"], results_of(runs[0])["trained_steps"]) == (6, 18)
    again = run_verb("train", *flags[0], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is complete at step 18: it ended by train.patience" in again.stdout


@pytest.mark.slow
def test_two_processes_write_the_same_results(tmp_path, messages, whole):
    run = tmp_path / "together"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = command(0, [*flags_of(messages, run), "--coordinator", address, "--processes", "2"])
    processes = [
        subprocess.Popen([*words, "--process", str(i)], env=environment_on(1)) for i in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    ours, theirs = results_of(run), results_of(whole)
    assert ours.keys() == theirs.keys()
    # each device draws its own dropout
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-2)
    assert (run / "confusion.png").exists()


def validated(*values: float, losses: Sequence[float] | None = None) -> list[dict]:
    """Rows of a run that was validated after every other step, with equal losses by default."""
    rows: list[dict] = []
    for accuracy, loss in zip(values, losses or [0.5] * len(values), strict=True):
        rows.append({"step": len(rows) + 1})
        rows.append({"step": len(rows) + 1, "val_accuracy": accuracy, "val_loss": loss})
    return rows


@pytest.mark.parametrize(
    ("values", "ended"),
    [
        ((0.9, 0.9), False),
        ((0.9, 0.9, 0.8), True),
        ((0.9, 0.9, 0.91), False),
        ((0.5, 0.9, 0.8, 0.9), True),
        ((), False),
    ],
)
def test_patience_counts_validations_since_the_first_of_the_best(values, ended):
    train = TrainConfig(best_by="accuracy", patience=2)
    assert (early_end(validated(*values), train) is not None) is ended
    assert early_end(validated(*values), TrainConfig(best_by="accuracy")) is None
    losses = [1 - value for value in values]
    rows = validated(*values, losses=losses)
    assert (early_end(rows, TrainConfig(patience=2)) is not None) is ended


@pytest.mark.parametrize("losses", [(0.5, 0.4, 0.3), (0.3, 0.4, 0.5), (0.5, 0.3, math.nan)])
def test_patience_counts_from_the_checkpoint_that_is_the_best(losses):
    found, rows = Ranking(), validated(0.9, 0.9, 0.9, losses=losses)
    for row in rows:
        found.add(row["step"], {**row, "best_by": "accuracy"})
    best = found.best()
    since = sum("val_loss" in row and row["step"] > best for row in rows)
    for patience in (1, 2, 3):
        words = early_end(rows, TrainConfig(best_by="accuracy", patience=patience))
        assert (words is not None) is (since >= patience)
        assert words is None or f"after step {best}," in words


def test_of_equal_accuracies_the_lower_loss_is_the_best_and_losses_are_apart():
    found = Ranking()

    def cursor(accuracy: float, loss: float) -> dict:
        return {"val_loss": loss, "best_by": "accuracy", "val_accuracy": accuracy}

    for step, figures in enumerate([(0.8, 0.3), (0.9, 0.5), (0.9, 0.4), (0.9, 0.4)], 1):
        found.add(step, cursor(*figures))
    assert (found.best(), found.loss(3)) == (3, 0.4)
    assert found.would_lead(cursor(0.9, 0.39))
    assert not found.would_lead(cursor(0.9, 0.4))
    found.add(5, {"val_loss": 0.6})  # the run goes on by the loss
    assert found.best() == 5


@pytest.mark.slow
def test_replayed_steps_of_an_epoch_have_every_training_example_once(messages, whole):
    run = load_run(whole)
    found = [row for step in range(1, 7) for row in replay(run, step, 8, "float32")]
    examples = sorted(row.origin["example"] for row in found)
    assert examples == list(range(len(examples)))
    texts = {line.split("\t")[1] for line in messages.read_text().splitlines()}
    assert {text for row in found for text in row.documents} <= {
        text[:47] for text in texts
    } | texts
    recorded = sum(row["tokens"] for row in rows_of(whole)[:6])
    assert len(found) == sum(row.weight for row in found) == recorded

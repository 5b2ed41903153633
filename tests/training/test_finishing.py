"""results.json holds the account of every run, beside what a fine-tuning has measured."""

import json

import pytest

from gptjax.runs.directory import RESULTS, RunDir
from gptjax.training.finishing import add_account, has_results

ACCOUNT = {"goodput": 0.5, "seconds": {"training": 1.0, "saving": 1.0}}
LOSSES = {10: 2.5, 20: 3.0}


@pytest.mark.parametrize(
    ("known", "best", "expected"),
    [
        (None, 10, {"step": 10, "trained_steps": 20, "val_loss": 2.5}),
        (None, None, {"step": 20, "trained_steps": 20, "val_loss": 3.0}),
        ("[]", 10, {"step": 10, "trained_steps": 20, "val_loss": 2.5}),
        (
            '{"step": 10, "trained_steps": 20, "accuracy": 0.9, "goodput": 0.1}',
            20,
            {"step": 10, "trained_steps": 20, "accuracy": 0.9},
        ),
        (  # the run has grown since
            '{"step": 5, "trained_steps": 5, "accuracy": 0.9}',
            20,
            {"step": 20, "trained_steps": 20, "val_loss": 3.0},
        ),
    ],
)
def test_the_account_is_added_to_what_is_known_of_the_same_steps(known, best, expected, tmp_path):
    path = tmp_path / RESULTS
    if known is not None:
        path.write_text(known)
    add_account(RunDir(tmp_path), 20, best, LOSSES.get, ACCOUNT)
    assert json.loads(path.read_bytes()) == {**expected, **ACCOUNT}
    assert has_results(RunDir(tmp_path), 20)

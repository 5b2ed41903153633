"""A run that has begun keeps its examples: it resumes without the file, and never with another."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import environment_on, run_verb, without_speed
from labelled_files import as_tsv, config_for, messages

from gptjax.base.errors import UserError
from gptjax.data.classify import LabelledTexts
from gptjax.data.keeping import KEPT


@pytest.fixture
def spam(tmp_path) -> Path:
    path = tmp_path / "spam.tsv"
    path.write_text(as_tsv(messages()))
    return path


def everything(data: LabelledTexts) -> list[list[dict[str, np.ndarray]]]:
    return [[s[i] for i in range(len(s))] for s in (data.train, data.validation, data.test)]


def assert_same(data: LabelledTexts, other: LabelledTexts) -> None:
    assert data.fingerprint == other.fingerprint
    assert (data.labels, data.longest, data.rows) == (other.labels, other.longest, other.rows)
    for split, their_split in zip(everything(data), everything(other), strict=True):
        for example, theirs in zip(split, their_split, strict=True):
            for name, x in example.items():
                np.testing.assert_array_equal(x, theirs[name], strict=True)


@pytest.mark.parametrize("form", ["single", "similarity"])
def test_examples_come_back_as_they_were_once_the_file_is_gone(form, spam, tmp_path):
    fields = {"form": form, "balance": "weights", "test_fraction": 0.0}
    if form == "similarity":
        rows = [f'{{"text": "{t}", "text2": "{t[::-1]}", "label": "{k}"}}' for k, t in messages()]
        spam = tmp_path / "pairs.jsonl"
        spam.write_text("\n".join(rows))
    config = config_for(spam, **fields)
    data = LabelledTexts(config, None, None)
    data.keep(tmp_path)
    for _ in range(2):
        again = LabelledTexts(config, data.tokenizer, tmp_path)
        assert again.kept == tmp_path / KEPT
        assert_same(data, again)
        spam.unlink(missing_ok=True)
    before = (tmp_path / KEPT).stat().st_mtime_ns
    again.keep(tmp_path)
    assert (tmp_path / KEPT).stat().st_mtime_ns == before


def test_another_file_or_another_setting_is_read_anew_and_shows_in_the_fingerprint(spam, tmp_path):
    config = config_for(spam)
    data = LabelledTexts(config, None, None)
    data.keep(tmp_path)
    for fields in ({"split_seed": 1}, {"val_fraction": 0.1}, {"read": "last"}, {"context": 20}):
        other = LabelledTexts(config_for(spam, **fields), data.tokenizer, tmp_path)
        assert other.kept is None
        assert other.fingerprint != data.fingerprint
    spam.write_text(as_tsv(messages()[::-1]) + "ham\tone more\n")
    changed = LabelledTexts(config, data.tokenizer, tmp_path)
    assert changed.kept is None
    assert changed.fingerprint != data.fingerprint
    spam.unlink()
    with pytest.raises(UserError, match="does not exist"):
        LabelledTexts(config_for(spam, split_seed=1), data.tokenizer, tmp_path)


def test_a_token_a_label_or_a_name_alone_changes_the_fingerprint(spam):
    rows = messages()
    others = [
        rows,
        [(rows[0][0], rows[0][1].replace("m", "n")), *rows[1:]],
        [("ham", rows[0][1]), ("spam", rows[1][1]), *rows[2:]],
        [(label.upper(), text) for label, text in rows],
    ]
    config, found = config_for(spam, val_fraction=0.0, test_fraction=0.0), set()
    for other in others:
        spam.write_text(as_tsv(other))
        found.add(LabelledTexts(config, None, None).fingerprint)
    assert len(found) == len(others)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half of it", None])
def test_damaged_examples_are_read_from_the_file_again(damage, spam, tmp_path):
    config = config_for(spam)
    data = LabelledTexts(config, None, None)
    data.keep(tmp_path)
    path = tmp_path / KEPT
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    again = LabelledTexts(config, data.tokenizer, tmp_path)
    assert again.kept is None
    assert_same(data, again)


SETTINGS = {
    "config": "spam_classify", "data.examples": "spam.tsv", "data.tokenizer": "bytes",
    "model.n-layer": 1, "model.n-head": 1, "model.n-embd": 8, "model.n-ctx": 24, "model.unroll": 1,
    "model.clf-pdrop": 0.1, "model.resid-pdrop": 0.1, "train.batch-rows": 5,
    "train.micro-batch": 5, "train.epochs": 6, "train.save-every-steps": 3,
    "train.eval-every-epochs": "None", "train.eval-every-steps": 5, "classify.balance": "none",
}  # fmt: skip
ARGUMENTS = [f"--{name}={value}" for name, value in SETTINGS.items()]


def outcome(run: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Everything in metrics.jsonl that no clock measured, and the kept examples."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    with np.load(run / KEPT) as kept:
        return [without_speed(json.loads(line)) for line in lines], dict(kept)


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_killed_run_goes_on_without_its_file_and_is_refused_another(spam, tmp_path):
    whole = run_verb("train", *ARGUMENTS, "--run-dir", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    args = [sys.executable, "-m", "gptjax.train", *ARGUMENTS, "--run-dir", "killed"]
    process = subprocess.Popen(
        args, cwd=tmp_path, env=environment_on(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # once the second checkpoint is there, the first one is complete
    checkpoint = tmp_path / "killed" / "checkpoints" / "6"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    text = spam.read_text()
    spam.write_text(text.replace("message 7 ", "message 8 "))
    before = outcome(tmp_path / "killed")[1]
    refused = run_verb("train", *ARGUMENTS, "--run-dir", "killed", cwd=tmp_path)
    assert refused.returncode == 1, refused.stdout
    assert "restore the file and its flags" in refused.stderr
    spam.unlink()
    resumed = run_verb("train", *ARGUMENTS, "--run-dir", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming killed after step" in resumed.stdout
    rows, kept = outcome(tmp_path / "killed")
    expected, examples = outcome(tmp_path / "whole")
    assert rows == expected
    for found in (kept, before):
        assert found.keys() == examples.keys()
        for name, x in examples.items():
            np.testing.assert_array_equal(found[name], x)

"""A run that classifies is measured as it was trained: its columns, its splits, its rarer class."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from labelled_files import as_tsv, config_for, messages

from gptjax.base.errors import UserError
from gptjax.cluster.stop import StopRequest
from gptjax.data.classify import LabelledTexts
from gptjax.evaluation.labels import Classifier, measure_labels
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.setting import Setting
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import init_params
from gptjax.training.finishing import Finished
from gptjax.training.labelling import measure_splits


def loaded(examples: Path, directory: Path | None, **fields: Any) -> tuple[LoadedRun, Any]:
    """A run that was drawn, not trained, with its data, and what it keeps in `directory`."""
    config = config_for(examples, **fields)
    data = LabelledTexts(config, None, None)
    if directory is not None:
        data.keep(directory)
    config = data.resolved(config)
    params = init_params(config.model, jax.random.key(0))
    return LoadedRun(config, params, data.tokenizer, 1, "a run", directory), data


def setting(run: LoadedRun, data: Path, notes: list[str] | None = None, **given: Any) -> Setting:
    scorer = Scorer(run.config.model, run.params, 16, "float32", run.config.context)
    say = [].append if notes is None else notes.append
    return Setting(run, scorer, str(data), note=say, **given)


@pytest.fixture
def spam(tmp_path) -> Path:
    path = tmp_path / "spam.tsv"
    path.write_text(as_tsv(messages()))
    return path


@pytest.mark.slow
def test_a_small_file_is_read_by_the_columns_of_the_training(spam, tmp_path):
    run, _ = loaded(spam, tmp_path)
    few, notes = tmp_path / "few.tsv", []
    few.write_text("spam\tmessage\nspam\twin\nspam\t" + "long " * 99 + "\n")
    found = measure_labels(setting(run, few, notes))
    probs_NC = Classifier(run).of_texts([["message"], ["win"], ["long " * 99]])
    right = int((probs_NC.argmax(1) == 1).sum())
    assert (found["examples"], found["accuracy"]) == (3, right / 3)
    assert ["1 of 3 examples are longer" in note for note in notes] == [True]
    titled = tmp_path / "titled.jsonl"
    titled.write_text(json.dumps({"label": "spam", "text": "cash"}) + "\n")
    with pytest.raises(UserError, match="text from 1; label from 0"):
        measure_labels(setting(run, titled))
    alone = dataclasses.replace(run, directory=None)
    titled.write_text(json.dumps({"kind": "spam", "sort": "ham", "words": "cash"}) + "\n")
    with pytest.raises(UserError, match="name them label and text in the file") as refused:
        measure_labels(setting(alone, titled))
    assert "--data." not in str(refused.value)


def test_a_choice_keeps_the_number_of_its_first_answer(tmp_path):
    def written(name: str, labels: list[int]) -> Path:
        rows = [
            {"text": f"t {n}", "a": "yes", "b": "no", "label": label}
            for n, label in enumerate(labels)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    fields = {"form": "choice", "choice_fields": ("a", "b")}
    run, _ = loaded(written("from_0.jsonl", [0, 1] * 20), tmp_path, **fields)
    found = measure_labels(setting(run, written("ones.jsonl", [1, 1])))
    assert np.sum(found["confusion"], 1).tolist() == [0, 2]


def test_a_split_is_that_of_the_run_and_of_no_other_file(spam, tmp_path):
    run, data = loaded(spam, tmp_path)
    found = measure_labels(setting(run, spam, split="test"))
    assert found == {
        "examples": 12,
        **Classifier(run).figures(data.test),
        "labels": ["ham", "spam"],
    }
    assert measure_labels(setting(run, spam, split="train", limit=5))["examples"] == 5
    spam.write_text(as_tsv(messages()[1:]))
    with pytest.raises(UserError, match="is not the file that a run was trained on"):
        measure_labels(setting(run, spam, split="test"))
    alone = dataclasses.replace(run, directory=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"has no examples\.npz"):
        measure_labels(setting(alone, spam, split="test"))


def test_f1_is_that_of_the_rarer_class_of_the_training(spam, tmp_path):
    run, _ = loaded(spam, tmp_path, balance="undersample")
    assert run.config.classify.rarer == "spam"
    for truths in ([1, 1, 1, 0], [0, 0, 0, 1]):
        found = Classifier(run).figures_of(truths, [0, 0, 1, 1])
        assert found["f1"] == found["f1/spam"] != found["f1/ham"]


def test_an_empty_text_has_no_class(spam):
    run, _ = loaded(spam, None)
    with pytest.raises(UserError, match="is empty"):
        Classifier(run).of_texts([[" \n"]])


def test_without_held_out_examples_a_run_still_ends(spam, tmp_path):
    run, data = loaded(spam, None, val_fraction=0.0, test_fraction=0.0)
    said = []
    with StopRequest() as stop:
        finished = Finished(run, None, data, tmp_path, said.append, lambda: None, stop)
        assert measure_splits(finished) == {"labels": ["ham", "spam"], "val_loss": None}
    assert said == []

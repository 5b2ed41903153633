"""The data of a classification: labelled texts in three splits, as the input of a classifier.

Letters: S sequences of an example, T time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.data.columns import Columns, counts_of
from gptjax.data.examples import Example
from gptjax.data.finetuning import FineTuningData, lengths_line, tokenizer_for, with_course
from gptjax.data.keeping import Prepared
from gptjax.data.labelled import Labelled, Reading, labels_in_order, read_labelled
from gptjax.data.padding import PaddedExamples
from gptjax.data.splitting import (
    Key,
    about_cuts,
    about_repeats,
    class_weights,
    count_with,
    divide_files,
    undersampled,
)
from gptjax.data.transformations import Transformation
from gptjax.tokenizers.plain import Tokenizer

FEW_CLASSES = 10  # as many may be learnt from any number of examples


class LabelledItem(NamedTuple):
    """An example in tokens."""

    sequences: tuple[np.ndarray, ...]
    label: int
    class_weight: float


class LabelledTexts(FineTuningData):
    """The data of a classification; raises `UserError` for files that make none."""

    def __init__(self, config: Config, given: Tokenizer | None, kept: Path | None):
        def prepare() -> tuple[Tokenizer, Prepared]:
            return _prepared(config, given)

        found = self.prepared(config, given, kept, LabelledItem, prepare)
        self.labels: tuple[str, ...] = tuple(found.facts["labels"])
        self._rarer: str = found.facts.get("rarer", "")
        self.counts = Counter(self.labels[item.label] for item in found.train)
        self._notes: list[str] = found.facts["notes"]
        self.longest = max(len(s) for part in found[:3] for item in part for s in item.sequences)
        self.train, self.validation, self.test = map(self._padded, found[:3])
        self._forms = self.train.forms()

    def _padded(self, items: Sequence[LabelledItem]) -> PaddedExamples:
        lengths = [max(map(len, item.sequences)) for item in items]
        return PaddedExamples(items, lengths, self.longest, pad_labelled)

    def resolved(self, config: Config) -> Config:
        """The config with the classes, special tokens, tokenizer and length of the data."""
        model = replace(
            config.model,
            n_vocab=self.tokenizer.n_vocab,
            n_special=config.classify.special_ids,
            n_classes=1 if config.classify.form == "choice" else len(self.labels),
        )
        config = replace(
            config,
            model=model,
            data=replace(config.data, tokenizer=self.tokenizer.name),
            classify=replace(config.classify, labels=self.labels, rarer=self._rarer),
        )
        return with_course(config, len(self.train), self.longest)

    def forms(self) -> list[Example]:
        """One for each length."""
        return self._forms

    def announcement(self, step: int) -> list[str]:
        """Sizes of splits and classes, what was read as what, and the lengths of batches."""
        del step
        lengths = [form["tokens"].shape[-1] for form in self._forms]
        return [
            f"data     {len(self.train):,} training examples ({counts_of(self.counts)}), "
            f"{len(self.validation):,} for validation, {len(self.test):,} for the test, tokenizer "
            f"{self.tokenizer.name}",
            *self.noted(self._notes),
            lengths_line(lengths),
        ]


def _prepared(config: Config, given: Tokenizer | None) -> tuple[Tokenizer, Prepared]:
    """Read, divide and tokenise the files of a config."""
    parts, notes, reading = _divided(config)
    train = parts[0]
    labels = _labels(config, train, parts[1:])
    notes += _about_case(labels)
    facts = {
        "labels": labels,
        "notes": notes,
        "rarer": rarer_label([row.label for row in train], labels),
        "reading": [reading.columns, *reading[1:]],
    }
    if config.classify.balance == "undersample":
        chosen = undersampled(
            [row.texts for row in train], [row.label for row in train], config.data.split_seed
        )
        notes.append(
            f"{len(train) - len(chosen):,} training examples of the larger classes are left out"
        )
        train = parts[0] = [train[index] for index in chosen]
    weights = dict.fromkeys(labels, 1.0)
    if config.classify.balance == "weights":
        weights = class_weights([row.label for row in train])
        notes.append("class weights " + ", ".join(f"{weights[n]:.3g} {n}" for n in labels))
    tokenizer = tokenizer_for(config, given, (text for row in train for text in row.texts))
    transformation = Transformation(config.classify, tokenizer, config.context)
    n_cut, items = 0, []
    for part in parts:
        items.append([])
        for row in part:
            try:
                sequences, is_cut = transformation.sequences(row.texts)
            except UserError as error:
                raise UserError(f"{row.where}: {error}") from error
            n_cut += is_cut
            items[-1].append(LabelledItem(sequences, labels.index(row.label), weights[row.label]))
    which = "the text" if config.classify.form == "single" else "the longer text"
    notes += about_cuts(n_cut, config.context, which)
    return tokenizer, Prepared(items[0], items[1], items[2], facts)


def reading_of(facts: Mapping[str, Any]) -> Reading | None:
    """How the file of a run was read, from the facts that it keeps; None if it keeps none."""
    if "reading" not in facts:
        return None
    (texts, label, others), has_header, numbering = facts["reading"]
    return Reading(Columns(tuple(texts), label, tuple(others)), has_header, numbering)


def rarer_label(found: Sequence[str], labels: Sequence[str]) -> str:
    """The rarer of two classes, of equally many the second; nothing for more classes.

    >>> rarer_label(["spam", "ham", "ham"], ("ham", "spam"))
    'spam'
    """
    counts = Counter(found)
    return min(reversed(labels), key=lambda name: counts[name]) if len(labels) == 2 else ""


def divided_rows(config: Config) -> tuple[list[list[Labelled]], list[str]]:
    """The examples of each split, and notes about the files and their repeated texts."""
    return _divided(config)[:2]


def _divided(config: Config) -> tuple[list[list[Labelled]], list[str], Reading]:
    data, form = config.data, config.classify.form
    file = read_labelled(config, Path(data.examples or ""))
    named = (data.val_examples, data.test_examples)
    files = [
        None if name is None else read_labelled(config, Path(name), file.reading) for name in named
    ]
    given = [None if other is None else other.rows for other in files]
    read = [row for rows in (file.rows, *given) for row in rows or ()]
    parts = divide_files(
        [file.rows, *given], lambda row: _key(row, form), lambda row: row.label, data
    )
    notes = [other.note for other in (file, *files) if other is not None]
    keys, labels = [_key(row, form) for row in read], [row.label for row in read]
    return parts, notes + _about_texts(keys, labels, sum(map(len, parts))), file.reading


def _key(row: Labelled, form: str) -> Key:
    """What makes two examples the same: their texts, of a similarity in either order."""
    return tuple(sorted(row.texts)) if form == "similarity" else row.texts


def _about_texts(keys: Sequence[Key], labels: Sequence[str], used: int) -> list[str]:
    notes = about_repeats(keys, used, "text")
    classes: dict[Key, Counter[str]] = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        classes[key][label] += 1
    if torn := len(keys) - sum(max(counts.values()) for counts in classes.values()):
        notes.append(count_with(torn, ("repeats", "repeat"), "a text with another label"))
    return notes


def _about_case(labels: Iterable[str]) -> list[str]:
    """A note about classes that only capital letters tell apart."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[label.casefold()].append(label)
    return [
        f"the classes {', '.join(map(repr, names))} differ only by capital letters: if they are "
        "one, correct the file"
        for names in alike.values()
        if len(names) > 1
    ]


def _labels(
    config: Config, train: Sequence[Labelled], held: Sequence[Sequence[Labelled]]
) -> tuple[str, ...]:
    """The classes in the order of the head's outputs; raises `UserError` if they are not all there.

    Those of a choice are the numbers of its answers.
    """
    there = {row.label for row in train}
    if config.classify.form == "choice":
        return tuple(str(n) for n in range(1, len(train[0].texts)))
    labels = config.classify.labels or labels_in_order(list(there))
    counts = counts_of(Counter(row.label for row in train))
    for row in (row for part in (train, *held) for row in part):
        if row.label not in labels:
            raise UserError(
                f"{row.where}, has the label {row.label!r}, which no training example has, or "
                f"classify.labels does not list; the training examples have {counts}"
            )
    if empty := [name for name in labels if name not in there]:
        raise UserError(
            f"the class {empty[0]!r} has no training example; they have {counts}: add examples, "
            "hold fewer out, or leave it out of classify.labels"
        )
    if len(labels) > max(FEW_CLASSES, len(train) / 2):
        raise UserError(
            f"{len(labels):,} classes in {len(train):,} training examples are too many to learn: "
            "name the column of the label by --data.label-field"
        )
    if len(labels) < 2:
        raise UserError(f"expected two classes or more, but the training examples have {counts}")
    return labels


def pad_labelled(item: LabelledItem, length: int) -> Example:
    """An example of `length` tokens a sequence, padded at the end."""
    tokens_ST = np.zeros((len(item.sequences), length), np.int32)
    for row, sequence in zip(tokens_ST, item.sequences, strict=True):
        row[: len(sequence)] = sequence
    return {
        "tokens": tokens_ST,
        "lengths": np.array([len(s) for s in item.sequences], np.int32),
        "label": np.array(item.label, np.int32),
        "class_weight": np.array(item.class_weight, np.float32),
        "weights": np.array(1.0, np.float32),
    }


def form_of_labelled(config: Config) -> Example:
    """An example as long as the longest, made without data."""
    empty = np.zeros(1, np.int32)
    return pad_labelled(LabelledItem((empty,) * config.classify.sequences, 0, 1.0), config.context)

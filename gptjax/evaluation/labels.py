"""Classes of texts by a run that classifies: their probabilities, and how often they are right.

Letters: B examples of a batch, S sequences of an example, T time, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.config.schema import CLASSIFY
from gptjax.data.classify import LabelledItem, pad_labelled, reading_of
from gptjax.data.columns import UnclearColumns
from gptjax.data.examples import stacked
from gptjax.data.keeping import KEPT, Kept, read_kept
from gptjax.data.labelled import Labelled, read_labelled
from gptjax.data.padding import PaddedExamples, padded_lengths, padded_to
from gptjax.data.transformations import Transformation
from gptjax.evaluation.classes import class_figures, confusion_of
from gptjax.evaluation.setting import Setting
from gptjax.generation.loaded import LoadedRun
from gptjax.model.decoder import decoder_config
from gptjax.model.gpt import GPT
from gptjax.model.heads import class_scores, last_states
from gptjax.model.products import matmul_precision

Sequences = Sequence[np.ndarray]
TEXTS = {"single": "one text", "pair": "two texts", "similarity": "two texts"}


class Classifier:
    """A run that classifies, many texts at a time.

    Texts become sequences as in training, and are cut to the longest that training read. Sequences
    are padded to a few lengths, so few programs are compiled. Products and activations have the
    type `dtype`. Raises `UserError` for a run that does not classify.
    """

    def __init__(self, run: LoadedRun, batch_rows: int = 32, dtype: str = "float32"):
        config = run.config
        if config.task != CLASSIFY or not config.model.n_classes:
            raise UserError(
                f"{run.origin} is of a run that does not classify (its task is {config.task}): "
                "expected one of python -m gptjax.train --config spam_classify, or another with "
                "--task classify"
            )
        self.cfg = replace(decoder_config(config.model, dtype), unroll=1)
        self.labels, self.form = config.classify.labels, config.classify.form
        """Names of the classes in the order of their probabilities; those of a choice are numbers.
        """
        self._rarer = config.classify.rarer
        self._params, self._rows = run.params, batch_rows
        self._longest = config.context
        self._transform = Transformation(config.classify, run.tokenizer, self._longest)
        self._precision = matmul_precision(self.cfg, jax.devices()[0])

    def of_texts(
        self,
        texts: Sequence[Sequence[str]],
        progress: Callable[[int], None] = lambda done: None,
        note: Callable[[str], None] = lambda words: None,
    ) -> np.ndarray:
        """Probabilities of all classes, float32 [N, C], of examples with one text or several.

        A pair has two; a choice has a text and its answers, and C is their number. `note` is called
        if texts are cut. Raises `UserError` for another number of texts, and for an empty one.
        """
        for own in texts:
            if self.form == "choice" and len(own) < 3:
                raise UserError(
                    "this run chooses between answers: expected a text and at least two answers "
                    f"to it, not {len(own)} texts in all"
                )
            if self.form != "choice" and len(own) != (1 if self.form == "single" else 2):
                raise UserError(
                    f"this run reads {TEXTS[self.form]} an example (classify.form {self.form}), "
                    f"not {len(own)}"
                )
            if not all(text.strip() for text in own):
                raise UserError("one of the texts is empty: expected words to classify")
        made = [self._transform.sequences(own) for own in texts]
        if n_cut := sum(is_cut for _, is_cut in made):
            which = "the text is" if len(made) == 1 else f"{n_cut:,} of {len(made):,} examples are"
            note(
                f"{which} longer than {self._longest} tokens, as many as the longest in training "
                "had, so only the beginning is read"
            )
        return self.of_sequences([sequences for sequences, _ in made], progress)

    def of_sequences(
        self, examples: Sequence[Sequences], progress: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Probabilities of all classes, float32 [N, C], of examples as sequences of token ids.

        `progress` is called with the number of examples that a batch has finished.
        """
        found: list[np.ndarray | None] = [None] * len(examples)
        for numbers, tokens_BST, lengths_BS in self._batches(examples):
            with jax.default_matmul_precision(self._precision):
                probs_BC = _probabilities(self.cfg, self.form, self._params, tokens_BST, lengths_BS)
            for number, probs_C in zip(numbers, np.asarray(probs_BC), strict=False):
                found[number] = probs_C
            progress(len(numbers))
        return np.stack([x for x in found if x is not None])

    def _batches(
        self, examples: Sequence[Sequences]
    ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Numbers of examples of about equal length and number of sequences, and their tokens."""
        allowed = padded_lengths(self._longest)

        def form(number: int) -> tuple[int, int]:
            longest = max(map(len, examples[number]))
            return len(examples[number]), padded_to(longest, allowed)

        groups: dict[tuple[int, int], list[int]] = {}
        for number in range(len(examples)):
            groups.setdefault(form(number), []).append(number)
        for (_, time), members in sorted(groups.items(), reverse=True):
            for start in range(0, len(members), self._rows):
                numbers = members[start : start + self._rows]
                items = [LabelledItem(tuple(examples[n]), 0, 1.0) for n in numbers]
                rows = [pad_labelled(item, time) for item in items]
                # a batch of fewer rows would be another program
                batch = stacked(rows + rows[:1] * (self._rows - len(rows)))
                yield numbers, batch["tokens"], batch["lengths"]

    def figures(
        self,
        examples: PaddedExamples,
        progress: Callable[[int], None] = lambda done: None,
    ) -> dict[str, Any]:
        """The figures of `class_figures` on the labelled examples of a classification."""
        items = examples.items
        guesses = self.of_sequences([item.sequences for item in items], progress).argmax(1)
        return self.figures_of([item.label for item in items], guesses)

    def figures_of(self, truths: Sequence[int], guesses: Sequence[int]) -> dict[str, Any]:
        """The figures of `class_figures`, from the numbers of the classes of examples."""
        confusion = confusion_of(truths, guesses, len(self.labels))
        return class_figures(confusion, self.labels, self._rarer)


def measure_labels(setting: Setting) -> dict[str, Any]:
    """The figures of a file of labelled texts, or of the split of it that `setting` names.

    A file is read as that of the training was: the same columns, header and numbers of answers.
    Raises `UserError` for a run that does not classify, for a file that is not like that of its
    training, and for a label that it has not learned.
    """
    scorer, directory = setting.scorer, setting.run.directory
    classifier = Classifier(setting.run, scorer.batch_rows, scorer.cfg.dtype)
    kept = None if directory is None else read_kept(directory, LabelledItem)
    if setting.split is not None:
        items = _own_split(setting, setting.split, kept)[: setting.limit]
        truths = [item.label for item in items]
        with setting.bar(len(items), "examples") as progress:
            probs_NC = classifier.of_sequences([item.sequences for item in items], progress)
    else:
        rows = _rows_like(setting, kept)[: setting.limit]
        truths = [_number(row, classifier.labels, setting.run.origin) for row in rows]
        texts = [row.texts for row in rows]
        with setting.bar(len(rows), "examples") as progress:
            probs_NC = classifier.of_texts(texts, progress, setting.note)
    figures = classifier.figures_of(truths, probs_NC.argmax(1).tolist())
    return {"examples": len(truths), **figures, "labels": list(classifier.labels)}


def _own_split(setting: Setting, split: str, kept: Kept | None) -> list[LabelledItem]:
    """The examples of a split, as the run keeps them, if the file of `setting` is theirs."""
    path, origin = Path(setting.data), setting.run.origin
    if kept is None:
        raise UserError(
            f"--split {split}: {origin} has no {KEPT}, which says how its examples were divided: "
            f"leave --split out to measure all of {path}"
        )
    setting.require_file_of(kept)
    examples = kept.examples
    parts = {"train": examples.train, "validation": examples.validation, "test": examples.test}
    if not parts[split]:
        raise UserError(f"the {split} split of this run has no examples: leave --split out")
    return parts[split]


def _rows_like(setting: Setting, kept: Kept | None) -> list[Labelled]:
    """The examples of a file, from the columns that the training read."""
    path, reading = Path(setting.data), None if kept is None else reading_of(kept.examples.facts)
    try:
        return read_labelled(setting.run.config, path, reading).rows
    except UnclearColumns as error:
        raise UserError(
            f"{path} does not say which columns have the label and the text, and "
            f"{setting.run.origin} has no {KEPT}, which says what its training read: name them "
            "label and text in the file"
        ) from error


def _number(row: Labelled, labels: Sequence[str], origin: str) -> int:
    if row.label not in labels:
        raise UserError(
            f"{row.where}, has the label {row.label!r}; {origin} has learned {', '.join(labels)}: "
            "correct it, or leave it out"
        )
    return labels.index(row.label)


def class_lines(probs_C: Sequence[float] | np.ndarray, labels: Sequence[str]) -> list[str]:
    """The most probable class, and then all of them with their probabilities, most probable first.

    >>> print(*class_lines([0.25, 0.75], ("ham", "spam")), sep="\\n")
    spam
      spam  0.7500
      ham   0.2500
    """
    ranked = sorted(zip(labels, probs_C, strict=True), key=lambda pair: -pair[1])
    width = max(map(len, labels))
    return [ranked[0][0], *(f"  {label:{width}}  {share:.4f}" for label, share in ranked)]


@partial(jax.jit, static_argnames=("cfg", "form"))
def _probabilities(
    cfg: ModelConfig, form: str, params: Any, tokens_BST: Array, lengths_BS: Array
) -> Array:
    tokens_MT = tokens_BST.reshape(-1, tokens_BST.shape[-1])
    features: Any = GPT(cfg).apply({"params": params}, tokens_MT, method=GPT.features)
    state_BSD = last_states(features[0], lengths_BS)
    return jax.nn.softmax(class_scores(cfg, form, params["clf"], state_BSD))

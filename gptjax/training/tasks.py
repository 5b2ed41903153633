"""The kinds of training: a row of TASKS has examples and losses; no other module knows either.

A row here and a config make a new kind of training; there is never a second trainer. Loader, feed,
step, loop, evaluation and checkpoint take whatever batch the examples of a task make.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.config import Config
from gptjax.config.chunks import loss_chunk
from gptjax.config.schema import CLASSIFY, INSTRUCT, PRETRAIN
from gptjax.data.classify import LabelledTexts, form_of_labelled
from gptjax.data.corpus import Corpus
from gptjax.data.examples import Example, TaskData
from gptjax.data.instruct import Instructions, form_of_instructions
from gptjax.evaluation.classes import class_figures
from gptjax.model.places import ModelSharding
from gptjax.tokenizers.plain import Tokenizer
from gptjax.training.objectives import Losses, classification, language_modelling

if TYPE_CHECKING:  # what compiles a program needs none of it
    from gptjax.training.finishing import Finished, Measure

Figures = dict[str, Any]


class Given(NamedTuple):
    """What a run knows before it opens its examples."""

    tokenizer: Tokenizer | None = None
    """That of the model to start from, or of the run that resumes; None if there is neither."""
    kept: Path | None = None
    """The directory of a run that has begun, where its examples are kept."""


class Task(NamedTuple):
    """A kind of training."""

    examples: Callable[[Config, Given], TaskData]
    """Open and check the data of a config; raises `UserError`."""
    form: Callable[[Config], Example]
    """An example with the shapes and types of all, made without data, for compiling."""
    losses: Callable[[Config, ModelSharding, int | None], Losses]
    """The losses of a config whose vocabulary is known, for parameters divided as the second
    argument says. Given the id of the token that begins a document, attention stays inside
    documents."""
    reads_shards: bool = False
    """Whether the data is a prepared directory, which must exist, or be made, before the run;
    otherwise it is a file of examples."""
    unit: str = "token"
    """What losses are means over."""
    try_it: str = "--prompt"
    """The flag of `python -m gptjax.generate` that shows what a run has learned."""
    figures: Callable[[Config, Mapping[str, np.ndarray]], Figures] = lambda config, sums: {}
    """Further figures of a validation, such as accuracy, from the sums of what it measures."""
    results: "Measure | None" = None
    """Measures the best checkpoint on the test split, for results.json."""


def _next_tokens(config: Config, split: ModelSharding, eot_id: int | None) -> Losses:
    return language_modelling(config.model, loss_chunk(config), split, eot_id)


def _responses(config: Config, split: ModelSharding, eot_id: int | None) -> Losses:
    return language_modelling(config.model, loss_chunk(config), split, eot_id, sparse=True)


def _window(config: Config) -> Example:
    return {"tokens": np.zeros(config.context + 1, np.int32)}


def _labels(config: Config, split: ModelSharding, eot_id: int | None) -> Losses:
    del eot_id
    return classification(config.model, config.classify, loss_chunk(config), split)


def _measure_labels(finished: "Finished") -> Figures | None:
    from gptjax.training.labelling import measure_splits

    return measure_splits(finished)


def _measure_responses(finished: "Finished") -> Figures | None:
    from gptjax.training.answering import answer_test

    return answer_test(finished)


def _class_figures(config: Config, sums: Mapping[str, np.ndarray]) -> Figures:
    return class_figures(sums["confusion"], config.classify.labels, config.classify.rarer)


TASKS = {
    PRETRAIN: Task(lambda config, given: Corpus(config), _window, _next_tokens, reads_shards=True),
    CLASSIFY: Task(
        lambda config, given: LabelledTexts(config, *given),
        form_of_labelled,
        _labels,
        unit="example",
        try_it="--classify",
        figures=_class_figures,
        results=_measure_labels,
    ),
    INSTRUCT: Task(
        lambda config, given: Instructions(config, *given),
        form_of_instructions,
        _responses,
        results=_measure_responses,
    ),
}


def task_of(config: Config) -> Task:
    """The row of `config.task`; raises a `ConfigError` that names the known tasks."""
    if config.task not in TASKS:
        near = f"{did_you_mean(config.task, TASKS)}; expected one of {', '.join(TASKS)}"
        raise ConfigError([f"unknown task {config.task!r}{near}"])
    return TASKS[config.task]

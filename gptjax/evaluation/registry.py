"""The table of evaluations: the name on the command line, the figures it gives, what it reads.

Nothing here loads jax before a measurement begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptjax.evaluation.estimates import Figures

if TYPE_CHECKING:
    from gptjax.evaluation.setting import Setting


@dataclass(frozen=True)
class Evaluation:
    """A row of `EVALUATIONS`."""

    purpose: str
    """What it measures, in a few words."""
    measure: Callable[["Setting"], Figures]
    """Measures it; raises `UserError` for data that it cannot use."""
    reads: frozenset[str] = frozenset()
    """Optional flags that it reads, as fields of `Setting`, beside `limit`."""
    scored: str = "token"
    """What its `loss` and `perplexity` are means over."""


def _perplexity(setting: "Setting") -> Figures:
    from gptjax.evaluation.texts import measure_text

    return measure_text(setting)


def _wikitext(setting: "Setting") -> Figures:
    from gptjax.evaluation.wikitext import measure_wikitext

    return measure_wikitext(setting)


def _hellaswag(setting: "Setting") -> Figures:
    from gptjax.evaluation.hellaswag import measure_hellaswag

    return measure_hellaswag(setting)


def _lambada(setting: "Setting") -> Figures:
    from gptjax.evaluation.lambada import measure_lambada

    return measure_lambada(setting)


def _choices(setting: "Setting") -> Figures:
    from gptjax.evaluation.choices import measure_choices

    return measure_choices(setting)


def _responses(setting: "Setting") -> Figures:
    from gptjax.evaluation.responding import measure_responses

    return measure_responses(setting)


def _labels(setting: "Setting") -> Figures:
    from gptjax.evaluation.labels import measure_labels

    return measure_labels(setting)


EVALUATIONS = {
    "perplexity": Evaluation(
        "loss, perplexity and bits per byte of any text or prepared directory",
        _perplexity,
        frozenset({"stride", "text_field"}),
    ),
    "wikitext": Evaluation(
        "perplexity of WikiText by the word, as lm-evaluation-harness counts it", _wikitext
    ),
    "hellaswag": Evaluation(
        "accuracy on HellaSwag, in the style of lm-evaluation-harness, of llm.c or of both",
        _hellaswag,
        frozenset({"style"}),
    ),
    "lambada": Evaluation(
        "accuracy and perplexity of the last word of LAMBADA", _lambada, scored="last word"
    ),
    "choices": Evaluation("accuracy on any multiple-choice test in JSON lines", _choices),
    "labels": Evaluation(
        "accuracy, F1 and confusion of a run that classifies, on labelled texts",
        _labels,
        frozenset({"split"}),
    ),
    "responses": Evaluation(
        "exact match and ROUGE-L of responses to instructions, and a judge's grade if one is asked",
        _responses,
        frozenset({"split", "markdown", "judge", "judge_model"}),
    ),
}

"""HellaSwag: which of four endings follows a scene (Zellers et al. 2019, arXiv 1905.07830).

The file is the published hellaswag_val.jsonl with 10,042 items, or the same rows as Parquet. Two
styles are in use, and their figures differ by points:

- `lm-eval`, the style of lm-evaluation-harness: the activity is written before the scene, the marks
  of WikiHow in brackets are removed, and acc_norm divides by characters;
- `llmc`, the completion style of llm.c and build-nanogpt: scene and ending as they are, encoded by
  themselves, and acc_norm divides by tokens.

Reference values for OpenAI's weights in float32:

| model | lm-eval acc | acc_norm | llmc acc | acc_norm |
|---|---|---|---|---|
| GPT-2 124M | .2892 | .3114 | .2859 | .2955 |
| GPT-2 1558M | .4004 | .5089 | .3842 | .4893 |

(Docstrings of llm.c's dev/data/hellaswag.py and build-nanogpt's hellaswag.py.)
"""

import re
from typing import Any, NamedTuple

from gptjax.evaluation.choices import Question, answers_of, requests_for
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.records import (
    label_field,
    read_records,
    text_field,
    text_list_field,
)
from gptjax.evaluation.setting import BOTH_STYLES, LLMC_STYLE, LM_EVAL_STYLE, Setting

_MARKS = re.compile(r"\[.*?\]")


class Scene(NamedTuple):
    """An item of HellaSwag, with the names of its file."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: tuple[str, ...]
    label: int
    place: str
    """Where it stands in its file, in words for messages."""


def read_scenes(data: str, limit: int | None = None) -> list[Scene]:
    """Read hellaswag_val.jsonl, the first `limit` items if it is not None.

    Raises a `UserError` that lists the rows that are wrong; those of the published test set have no
    label.
    """

    def read(row: dict[str, Any], place: str) -> Scene:
        activity, first, second, context = (
            text_field(row, name) for name in ("activity_label", "ctx_a", "ctx_b", "ctx")
        )
        endings = text_list_field(row, "endings")
        if not all(without_marks(ending) for ending in endings):
            raise ValueError("an ending has nothing but marks of WikiHow")
        if row.get("label") == "":
            raise ValueError("it has no label, like the published test set: use the validation set")
        label = label_field(row, "label", endings)
        return Scene(activity, first, second, context, endings, label, place)

    return read_records(data, read, limit)


def without_marks(text: str) -> str:
    """A text without the marks of WikiHow, by the rule of lm-evaluation-harness.

    >>> without_marks(" How to sew [title] Thread it. [step] Pull  it.")
    'How to sew. Thread it. Pull it.'
    """
    text = text.strip().replace(" [title]", ". ")
    return _MARKS.sub("", text).replace("  ", " ")


def in_lm_eval_style(scene: Scene) -> Question:
    """The question that lm-evaluation-harness asks."""
    context = f"{scene.activity_label}: {scene.ctx_a} {scene.ctx_b.capitalize()}"
    endings = tuple(map(without_marks, scene.endings))
    return Question(without_marks(context), endings, scene.label, scene.place)


def in_llmc_style(scene: Scene) -> Question:
    """The question that llm.c and build-nanogpt ask."""
    return Question(scene.ctx, scene.endings, scene.label, scene.place)


def measure_hellaswag(setting: Setting) -> Figures:
    """`acc` and `acc_norm` with standard errors, and `items`, in the style of the setting.

    Where llm.c's style is asked for, its figures are also under `llmc_acc` and `llmc_acc_norm`;
    with both styles `acc` and `acc_norm` are lm-evaluation-harness's. Raises `UserError` for data
    it cannot use.
    """
    scenes = read_scenes(setting.data, setting.limit)
    tokenizer, context = setting.run.tokenizer, setting.scorer.context
    figures: Figures = {}
    groups, style = [], setting.style or LM_EVAL_STYLE
    if style in (LM_EVAL_STYLE, BOTH_STYLES):
        questions = list(map(in_lm_eval_style, scenes))
        groups.append((LM_EVAL_STYLE, questions, requests_for(tokenizer, questions, context)))
    if style in (LLMC_STYLE, BOTH_STYLES):
        questions = list(map(in_llmc_style, scenes))
        groups.append(
            (LLMC_STYLE, questions, requests_for(tokenizer, questions, context, apart=True))
        )
    everything = [request for _, _, requests in groups for request in requests]
    with setting.bar(len(everything), "endings") as progress:
        scores = setting.scorer.score(everything, progress)
    for style, questions, requests in groups:
        answers, scores = answers_of(questions, requests, scores), scores[len(requests) :]
        lengths = answers.characters if style == LM_EVAL_STYLE else answers.tokens
        found = answers.accuracy("acc") | answers.accuracy("acc_norm", lengths)
        figures = found | figures  # the first style's
        if style == LLMC_STYLE:
            figures |= {f"llmc_{name}": value for name, value in found.items()}
    return figures | {"items": len(scenes)}

"""LAMBADA: the last word of a passage, which needs the whole passage (Paperno et al. 2016).

The text is OpenAI's, lambada_test.jsonl with 5,153 rows `{"text": "..."}`, or one passage a line.
As in the task lambada_openai of lm-evaluation-harness, the target is a blank and what comes after
the last blank; it is right if greedy decoding writes each of its tokens. `perplexity` is per word:
the exponential of the mean negative log-probability of the targets.

Reference values for OpenAI's weights: by lm-evaluation-harness, GPT-2 1558M has perplexity 10.634
and acc .5121 (README of EleutherAI/gpt-neo), and 40.06 and .3256 are quoted for 124M. By nanochat's
CORE (dev/estimate_gpt3_core.ipynb) the accuracies of the four sizes are .323, .426, .488 and .523.
The GPT-2 paper's 35.13 and .4599 for 117M use a filter of stop words.
"""

import statistics
from typing import Any

from gptjax.evaluation.choices import share_stderr
from gptjax.evaluation.estimates import Figures, bounded_exp, ratio_estimate, times
from gptjax.evaluation.pairs import Pair, requests_of
from gptjax.evaluation.records import read_values, text_field
from gptjax.evaluation.setting import Setting


def read_passage(text: str, place: str) -> Pair:
    """Divide a passage before its last word; raises `ValueError` if it is empty.

    >>> read_passage("She said hello", "line 1")
    Pair(context='She said', continuation=' hello', place='line 1')
    """
    if not text.strip():
        raise ValueError("the passage is empty")
    context, _, word = text.rpartition(" ")
    return Pair(context, " " + word, place)


def read_lambada(data: str, limit: int | None = None) -> list[Pair]:
    """Read passages from rows with a `text` or from plain lines, the first `limit` if not None.

    Raises a `UserError` that lists the rows that are wrong.
    """

    def read(row: Any, place: str) -> Pair:
        return read_passage(row if isinstance(row, str) else text_field(row, "text"), place)

    return read_values(data, read, limit)


def measure_lambada(setting: Setting) -> Figures:
    """`acc`, `perplexity` and `loss` per last word, with standard errors, and `items`.

    `stderr` is the error of `loss`, from the spread of the words; that of `perplexity` is, to first
    order, the perplexity times as much. Raises `UserError` for data it cannot use.
    """
    passages = read_lambada(setting.data, setting.limit)
    requests = requests_of(setting.run.tokenizer, passages, setting.scorer.context)
    with setting.bar(len(requests), "passages") as progress:
        scores = setting.scorer.score(requests, progress)
    acc = statistics.fmean(score.is_greedy for score in scores)
    loss, error = ratio_estimate([-score.logprob for score in scores], [1] * len(scores))
    perplexity = bounded_exp(loss)
    return {
        "acc": acc,
        "acc_stderr": share_stderr(acc, len(scores)),
        "perplexity": perplexity,
        "perplexity_stderr": times(error, perplexity),
        "loss": loss,
        "stderr": error,
        "items": len(scores),
    }

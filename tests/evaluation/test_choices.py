"""Multiple choice, HellaSwag and LAMBADA: what is asked, what counts as right, what is refused."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shaped_tests import hellaswag_rows, write_rows

from gptjax.base.errors import UserError
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.hellaswag import in_llmc_style, in_lm_eval_style, read_scenes
from gptjax.evaluation.pairs import encode_apart, encode_pair
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.evaluation.scoring import Request, Score
from gptjax.evaluation.setting import Setting
from gptjax.tokenizers.bpe import train_bpe
from gptjax.tokenizers.plain import ByteTokenizer


class CountingScorer:
    """A model to which a byte is the likelier the smaller it is: -byte/100 nats each."""

    def __init__(self, context: int = 1000):
        self.context, self.requests = context, list[Request]()

    def score(self, requests: list[Request], progress: Any) -> list[Score]:
        self.requests += requests
        return [Score(-sum(r.continuation) / 100, max(r.continuation) < 110) for r in requests]


def measure(name: str, data: Path | str, scorer: Any = None, **given: Any) -> Figures:
    run: Any = SimpleNamespace(tokenizer=ByteTokenizer())
    quiet = lambda total, unit: nullcontext(lambda done: None)  # noqa: E731
    setting = Setting(run, scorer or CountingScorer(), str(data), bar=quiet, **given)
    return EVALUATIONS[name].measure(setting)


def cost(text: str) -> float:
    return sum(text.encode()) / 100


def test_each_accuracy_divides_by_its_own_length(tmp_path):
    # by sum: the short one; by character: 'é' counts once, so its two bytes weigh more
    choices = ["b", "aaaa", "aaéaa"]
    rows = [{"context": "x", "choices": choices, "label": label} for label in (0, 1, 1, 2)]
    figures = measure("choices", write_rows(tmp_path / "c.jsonl", rows))
    sums = [-cost(" " + c) for c in choices]
    assert sums.index(max(sums)) == 0
    by_character = [s / len(c) for s, c in zip(sums, choices, strict=True)]
    by_token = [s / len((" " + c).encode()) for s, c in zip(sums, choices, strict=True)]
    assert by_character.index(max(by_character)) == 1
    assert by_token.index(max(by_token)) == 0
    assert [figures[n] for n in ("acc", "acc_norm", "acc_norm_tokens")] == [0.25, 0.5, 0.25]
    assert figures["acc_norm_stderr"] == pytest.approx(math.sqrt(0.5 * 0.5 / 3))
    assert figures["items"] == 4


@pytest.mark.parametrize(
    ("context", "choice", "continuation"),
    [("A cat", "sat", b" sat"), ("A: ", "B", b" B"), ("A", "\nB", b"\nB"), ("", "B", b"B")],
)
def test_a_blank_stands_between_context_and_choice(tmp_path, context, choice, continuation):
    scorer = CountingScorer()
    row = {"context": context, "choices": [choice, "other"], "label": choice}
    measure("choices", write_rows(tmp_path / "c.jsonl", [row]), scorer)
    first = scorer.requests[0]
    assert bytes(first.continuation) == continuation
    assert first.context == (list(context.rstrip().encode()) or [256])


def test_a_pair_is_cut_where_lm_eval_cuts_it():
    lm_eval = pytest.importorskip("lm_eval.api.model")
    tokenizer = train_bpe(["low lower lowest slow slowly " * 20], 266)

    class Cutter(lm_eval.TemplateLM):
        eot_token_id = tokenizer.eot_id

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(self, requests, **kwargs):
            return [(context, continuation) for _, context, continuation in requests]

        loglikelihood_rolling = generate_until = None

    pairs = [("slow low", " lower"), ("slow ", "lowest"), ("sl", "ow"), ("", "low"), ("a\n ", "b")]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    expected = Cutter().loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), tokens in zip(pairs, expected, strict=True):
        assert encode_pair(tokenizer, context, continuation) == tokens
    assert len(encode_apart(tokenizer, "sl", "ow").context) == len(tokenizer.encode("sl"))


def test_hellaswag_asks_as_lm_eval_and_as_llmc_do(tmp_path):
    row = {
        "activity_label": "Sewing",
        "ctx_a": "How to sew [title] Take  it.",
        "ctx_b": "the THREAD",
        "ctx": "How to sew [title] Take  it. the THREAD",
        "endings": ["goes [step] in.", "b", "c", "d"],
        "label": "2",
    }
    (scene,) = read_scenes(str(write_rows(tmp_path / "h.jsonl", [row])))
    lm_eval, llmc = in_lm_eval_style(scene), in_llmc_style(scene)
    assert lm_eval.context == "Sewing: How to sew. Take it. The thread"
    assert lm_eval.choices == ("goes in.", "b", "c", "d")
    assert (llmc.context, llmc.choices) == (row["ctx"], tuple(row["endings"]))
    assert lm_eval.label == llmc.label == 2


def test_the_style_of_hellaswag_chooses_the_figures(tmp_path):
    data = write_rows(tmp_path / "h.jsonl", hellaswag_rows(12))
    scorers = [CountingScorer() for _ in range(3)]
    styles = ("lm-eval", "llmc", "both")
    ours, llmc, both = (
        measure("hellaswag", data, scorer, style=style)
        for scorer, style in zip(scorers, styles, strict=True)
    )
    assert both == {**ours, **{n: v for n, v in llmc.items() if n.startswith("llmc_")}}
    assert (llmc["llmc_acc"], llmc["llmc_acc_norm"]) == (llmc["acc"], llmc["acc_norm"])
    assert [len(scorer.requests) for scorer in scorers] == [48, 48, 96]
    row = hellaswag_rows(1)[0]
    endings = [-cost(" " + e) / len(" " + e) for e in row["endings"]]
    first = measure("hellaswag", data, style="llmc", limit=1)
    assert first["acc_norm"] == float(endings.index(max(endings)) == row["label"])


def test_lambada_scores_the_last_word(tmp_path):
    texts = ["the fat cat", "an ox", "word", "the tail z"]
    data = tmp_path / "passages.txt"
    data.write_text("\n".join(texts) + "\n")
    scorer = CountingScorer()
    figures = measure("lambada", data, scorer)
    words = [" cat", " ox", " word", " z"]
    assert [bytes(r.continuation).decode() for r in scorer.requests] == words
    mean = sum(map(cost, words)) / 4
    assert figures["perplexity"] == pytest.approx(math.exp(mean))
    assert figures["acc"] == 0.0
    rows = write_rows(tmp_path / "p.jsonl", [{"text": text} for text in texts])
    assert measure("lambada", rows) == figures


def test_rows_that_cannot_be_used_are_listed_together(tmp_path):
    good: dict[str, Any] = {"context": "a", "choices": ["b", "c"], "label": 1}
    bad = [
        {**good, "label": 2},
        {**good, "label": True},
        {**good, "label": "d"},
        {**good, "choices": ["b"]},
        {**good, "choices": ["b", ""]},
        {k: v for k, v in good.items() if k != "context"},
    ]
    data = tmp_path / "bad.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad]) + "{broken\n[1]\n")
    with pytest.raises(UserError) as caught:
        measure("choices", data)
    message = str(caught.value)
    assert "line 2: expected under 'label' the number of the right choice, 0 to 1" in message
    assert all(f"line {n}:" in message for n in range(2, 7))
    assert "... and 3 more" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no file"), ("", "has no rows"), ("\xff", "not UTF-8")],
)
def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path, content, words):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        measure("choices", data)


def test_the_test_set_of_hellaswag_has_no_labels(tmp_path):
    rows = [{**row, "label": ""} for row in hellaswag_rows(2)]
    with pytest.raises(UserError, match="has no label"):
        measure("hellaswag", write_rows(tmp_path / "h.jsonl", rows))


def test_an_ending_of_nothing_but_marks_is_refused(tmp_path):
    row = {**hellaswag_rows(1)[0], "endings": ["[title]", "b", "c", "d"]}
    with pytest.raises(UserError, match="line 1: an ending has nothing but marks"):
        measure("hellaswag", write_rows(tmp_path / "h.jsonl", [row]))


@pytest.mark.parametrize(
    "content", ['{"text": "a b c\n', "[he said] hello", '[{"text": "a b"}, {"te']
)
def test_broken_json_is_no_passage(tmp_path, content):
    (tmp_path / "lambada").write_text(content)
    with pytest.raises(UserError, match="cut short or damaged"):
        measure("lambada", tmp_path / "lambada")


def test_digits_that_are_another_choice_decide_nothing(tmp_path):
    rows = [{"context": "1 + 0 =", "choices": ["1", "0"], "label": "0"}]
    with pytest.raises(UserError, match="give the number"):
        measure("choices", write_rows(tmp_path / "c.jsonl", rows))


def test_a_choice_longer_than_the_context_is_refused(tmp_path):
    row = {"context": "a", "choices": ["b", "c" * 20], "label": 0}
    with pytest.raises(UserError, match="line 1: a text to score has 21 tokens"):
        measure("choices", write_rows(tmp_path / "c.jsonl", [row]), CountingScorer(16))


def test_arrays_and_parquet_are_read_as_lines_are(tmp_path):
    rows = hellaswag_rows(3)
    lines = measure("hellaswag", write_rows(tmp_path / "h.jsonl", rows))
    (tmp_path / "h.json").write_text(json.dumps(rows))
    assert measure("hellaswag", tmp_path / "h.json") == lines
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "h.parquet")
    assert measure("hellaswag", tmp_path / "h.parquet") == lines

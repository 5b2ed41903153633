"""WikiText by lm-evaluation-harness's own functions, read from its files without importing it."""

import importlib.util
import json
import math
import random
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import Config, ModelConfig
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.setting import Setting
from gptjax.evaluation.wikitext import (
    detokenised,
    measure_wikitext,
    read_pages,
    rolling_requests,
    split_pages,
)
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import init_params
from gptjax.tokenizers.plain import ByteTokenizer

SHAPE = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, n_vocab=257, dtype="float32")
RAW = ' \n = Robert = \n \n He \'s an actor ( b . 1 @.@ 5 ) . \n = = Career = = \n He said " no " , 3 @,@ 000 times . \n = Anna = \n \n She is not at 5 ° N . \n'  # noqa: E501


def of_lm_eval(file: str):
    """A module of lm-evaluation-harness by its file: the package itself loads torch."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        pytest.skip("lm_eval is not installed")
    spec = importlib.util.spec_from_file_location("theirs", Path(found.origin).parent / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up_pages(count: int) -> list[str]:
    chance = random.Random(0)
    marks = [" ", " ", " , ", " . ", " ; ", " : ", " ! ", " ? ", " @-@ ", " @,@ ", " @.@ ", " ( ",
             " ) ", " [ ", " ] ", " { ", " } ", ' " ', " ' ", " 's ", " s '", " = ", " = = ",
             " = = = ", " = = = = ", " ° ", " \n ", "\n", " N ", "/' 5/", "°", "é"]  # fmt: skip
    words = ["it", "was", "1", "000", "N", "s", "Wien"]
    return ["".join(chance.choice(words) + chance.choice(marks) for _ in range(60))
            for _ in range(count)]  # fmt: skip


def test_pages_are_detokenised_as_theirs():
    theirs = of_lm_eval("tasks/wikitext/preprocess_wikitext.py").wikitext_detokenizer
    for page in [*made_up_pages(200), RAW]:
        assert detokenised(page) == theirs({"page": page})


def test_windows_score_each_token_once_after_as_much_as_fits():
    for length in range(1, 20):
        for context in (1, 2, 5, 16):
            requests = rolling_requests(list(range(1, length + 1)), 0, context)
            scored = [int(token) for request in requests for token in request.continuation]
            assert scored == list(range(1, length + 1))
            for before, after in requests:
                assert before[-1] + 1 == after[0]
                assert len(before) + len(after) == min(length, context) + 1


def test_pages_are_cut_before_headings_of_the_first_level():
    pages = list(split_pages(RAW))
    assert [re.findall(r"\w+", page)[0] for page in pages] == ["Robert", "Anna"]
    assert "= = Career = =" in pages[0]
    assert "\n".join(pages) == RAW[2:]


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    params = jax.tree.map(lambda x: 8 * x, init_params(SHAPE, jax.random.key(1)))
    return LoadedRun(Config(model=SHAPE), params, ByteTokenizer(), 0, "drawn")


def test_words_and_bytes_are_those_of_the_page_in_the_file(run, tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(RAW)
    scorer = Scorer(SHAPE, run.params)
    figures = measure_wikitext(Setting(run, scorer, str(path)))
    pages = list(split_pages(RAW))
    total = 0.0
    for page in pages:
        ids = list(detokenised(page).encode())
        total -= sum(s.logprob for s in scorer.score(rolling_requests(ids, 256, 16)))
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    sizes = sum(len(page.encode()) for page in pages)
    assert (figures["words"], figures["bytes"]) == (words, sizes)
    assert figures["tokens"] == sum(len(detokenised(page).encode()) for page in pages) < sizes
    assert figures["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-6)
    assert figures["byte_perplexity"] == pytest.approx(math.exp(total / sizes), rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(total / sizes / math.log(2), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(total / figures["tokens"]), rel=1e-6)
    assert np.isfinite(figures["word_perplexity_stderr"])


def test_records_hold_the_same_pages_as_the_text(tmp_path):
    pages = list(split_pages(RAW))
    (tmp_path / "raw").write_text(RAW)
    lines = "".join(json.dumps({"page": page}) + "\n" for page in pages)
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "array.json").write_text(json.dumps([{"page": page} for page in pages]))
    for name in ("raw", "lines.jsonl", "array.json"):
        assert read_pages(str(tmp_path / name)) == pages
        assert read_pages(str(tmp_path / name), limit=1) == pages[:1]


@pytest.mark.parametrize("content", ["", " \n ", '{"text": "no page"}\n', '{"page": '])
def test_files_without_pages_are_refused(tmp_path, content):
    path = tmp_path / "wiki"
    path.write_text(content)
    with pytest.raises(UserError, match="wiki"):
        read_pages(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\x00\x93", "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
        (b'{"page": ""}\n', "all of them are empty"),
    ],
)
def test_bytes_that_are_no_text_and_pages_without_any_are_refused(run, tmp_path, content, words):
    (tmp_path / "wiki").write_bytes(content)
    with pytest.raises(UserError, match=words):
        measure_wikitext(Setting(run, Scorer(SHAPE, run.params), str(tmp_path / "wiki")))


def test_half_a_surrogate_counts_as_the_one_byte_that_stands_for_it(run, tmp_path):
    (tmp_path / "wiki").write_text('{"page": "a \\ud800 b"}')
    figures = measure_wikitext(Setting(run, Scorer(SHAPE, run.params), str(tmp_path / "wiki")))
    assert figures["bytes"] == len("a ? b")

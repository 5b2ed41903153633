"""The scorer against the `hf` backend of lm-evaluation-harness, on one random GPT-2."""

import random
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.tree import as_tree
from gptjax.config import ModelConfig
from gptjax.conversion.weights import from_huggingface
from gptjax.evaluation.scoring import Request, Scorer
from gptjax.evaluation.wikitext import rolling_requests
from gptjax.tokenizers.bpe import gpt2

pytestmark = pytest.mark.slow
WORDS = "the quick brown fox's dog didn't jump over 1,000 naïve rivers; Ænima (again)\n"
CONTEXT = 32


def texts(count: int, seed: int, longest: int) -> list[str]:
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(WORDS.split(" "), k=chance.randint(1, longest)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory, test_data: Path):
    """A random GPT-2 in a directory, read by the harness, and its arrays in our scorer."""
    for needed in ("torch", "transformers", "lm_eval", "accelerate"):
        pytest.importorskip(needed)
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    directory = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    wide = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=CONTEXT, initializer_range=0.4)
    model = GPT2LMHeadModel(wide)
    model.save_pretrained(directory)
    cache = test_data / "tiktoken_cache"
    table, merges = (next(p for p in cache.iterdir() if p.read_bytes().startswith(start))
                     for start in (b"{", b"#version"))  # fmt: skip
    (directory / "vocab.json").write_bytes(table.read_bytes())
    (directory / "merges.txt").write_bytes(merges.read_bytes())
    GPT2TokenizerFast.from_pretrained(directory).save_pretrained(directory)
    theirs = HFLM(pretrained=str(directory), device="cpu", batch_size=4, dtype="float32")
    assert theirs.max_length == CONTEXT

    cfg = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=CONTEXT, n_vocab=50257, dtype="float32")
    arrays = {
        name: array.numpy()
        for name, array in model.state_dict().items()
        if name != "lm_head.weight"
    }
    params = as_tree(from_huggingface(arrays, cfg, "a random GPT-2"))
    return theirs, Scorer(cfg, params, batch_rows=4)


def test_continuations_score_as_in_the_harness(both):
    theirs, scorer = both
    pairs = list(zip(texts(60, 1, 40), texts(60, 2, 8), strict=True))
    tokens = [theirs._encode_pair(context, " " + more) for context, more in pairs]
    expected = theirs._loglikelihood_tokens([(("", ""), *pair) for pair in tokens])
    for score, (logprob, is_greedy) in zip(
        scorer.score([Request(*pair) for pair in tokens]), expected, strict=True
    ):
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert score.is_greedy == is_greedy


def test_greedy_continuations_are_greedy_in_both(both):
    theirs, scorer = both
    import torch

    pairs = []
    for text in texts(5, 3, 8):
        prompt = theirs.tok_encode(text)[:CONTEXT]
        tokens = list(prompt)
        for _ in range(2):
            logits = theirs._model_call(torch.tensor([tokens[-CONTEXT:]]))
            tokens.append(int(logits[0, -1].argmax()))
        pairs.append((prompt, tokens[len(prompt) :]))
    expected = theirs._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
    scores = scorer.score([Request(*pair) for pair in pairs])
    assert [score.is_greedy for score in scores] == [greedy for _, greedy in expected] == [True] * 5


def test_pages_roll_as_in_the_harness(both, test_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken_cache"))
    theirs, scorer = both
    from lm_eval.api.instance import Instance

    pages = texts(12, 4, 120)
    instances = [Instance("loglikelihood_rolling", {}, (page,), 0) for page in pages]
    tokenizer = gpt2()
    ours = []
    for page in pages:
        ids = tokenizer.encode(page)
        assert ids.tolist() == theirs.tok_encode(page)
        rolled = scorer.score(rolling_requests(ids, tokenizer.eot_id, CONTEXT))
        ours.append(sum(score.logprob for score in rolled))
    np.testing.assert_allclose(ours, theirs.loglikelihood_rolling(instances), atol=1e-4, rtol=1e-6)


def test_windows_are_those_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils")
    for length in range(1, 20):
        tokens = list(range(100, 100 + length))
        for context in (1, 2, 5, 16):
            windows = utils.get_rolling_token_windows(tokens, 7, context, 1)
            expected = [utils.make_disjoint_window(window) for window in windows]
            ours = rolling_requests(tokens, 7, context)
            assert [(r.context.tolist(), r.continuation.tolist()) for r in ours] == expected

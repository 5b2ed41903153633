"""The scorer against NumPy's softmax over all logits, and against lm-eval's own backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.evaluation.scoring import Request, Scorer, padded_length
from gptjax.model.gpt import GPT, init_params

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=32, n_vocab=61, dtype="float32")


@pytest.fixture(scope="module")
def params():
    wide = jax.tree.map(lambda x: 4 * x, init_params(SHAPE, jax.random.key(0)))
    return wide


def drawn(count: int, seed: int = 0, longest: int = 50) -> list[Request]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, [longest, 12], size=(count, 2))
    return [Request(*(rng.integers(0, 61, n).tolist() for n in pair)) for pair in lengths]


all_logits = jax.jit(GPT(SHAPE).apply)  # of one shape, since each one is compiled


def logits_of(params, tokens: list[int]) -> np.ndarray:
    """All logits of one row, float64 [T, V]; the padding is not that of the scorer."""
    row = np.full((1, 32), 60)
    row[0, : len(tokens)] = tokens
    logits = all_logits({"params": params}, row)
    return np.asarray(logits, np.float64)[0, : len(tokens), :61]


def by_hand(params, request: Request, context: int = 32) -> np.ndarray:
    """Log-probabilities of the continuation, from the logits of the request alone."""
    tokens = [*request.context, *request.continuation][-(context + 1) :]
    logits_TV = logits_of(params, tokens[:-1])[-len(request.continuation) :]
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    return np.take_along_axis(logprobs_TV, np.array(request.continuation)[:, None], 1)[:, 0]


@pytest.mark.parametrize("batch_rows", [1, 32])
def test_scores_are_those_of_each_request_alone(params, batch_rows):
    requests = drawn(30)
    scorer = Scorer(SHAPE, params, batch_rows=batch_rows)
    scores, tokens = scorer.score(requests), scorer.token_logprobs(requests)
    for request, score, logprobs in zip(requests, scores, tokens, strict=True):
        expected = by_hand(params, request)
        np.testing.assert_allclose(logprobs, expected, atol=3e-5)
        assert score.logprob == pytest.approx(expected.sum(), abs=2e-4)


def test_a_continuation_is_greedy_if_each_token_is_the_most_likely(params):
    requests = []
    for request in drawn(12, seed=1, longest=10):
        tokens = list(request.context)
        for _ in range(3):
            tokens.append(int(logits_of(params, tokens)[-1].argmax()))
        requests.append(Request(request.context, tokens[-3:]))
        other = (tokens[-1] + 1) % 61
        requests.append(Request(request.context, [*tokens[-3:-1], other]))
    scores = Scorer(SHAPE, params).score(requests)
    assert [score.is_greedy for score in scores] == [True, False] * 12


def test_of_equal_logits_the_first_is_the_top(params):
    even = {**params, "wte": {"embedding": jnp.zeros_like(params["wte"]["embedding"])}}
    scores = Scorer(SHAPE, even).score([Request([1], [0]), Request([1], [5]), Request([1], [0, 0])])
    assert [score.is_greedy for score in scores] == [True, False, True]
    assert scores[1].logprob == pytest.approx(-np.log(61), abs=1e-5)


def test_choices_that_differ_in_their_last_token_share_a_row(params):
    requests = [Request([3, 4, 5], [9, last]) for last in range(61)]
    scorer = Scorer(SHAPE, params, batch_rows=4)
    scores = scorer.score(requests)
    assert scorer.shapes == {(1, 8)}
    first = by_hand(params, Request([3, 4, 5], [9]))
    assert np.exp([s.logprob for s in scores]).sum() == pytest.approx(np.exp(first[0]), rel=1e-4)


def test_a_shorter_context_cuts_on_the_left(params):
    requests = drawn(8, seed=2)
    for request, score in zip(
        requests, Scorer(SHAPE, params, context=16).score(requests), strict=True
    ):
        expected = by_hand(params, request, context=16)
        assert score.logprob == pytest.approx(expected.sum(), abs=2e-4)


def test_few_shapes_are_compiled(params):
    scorer = Scorer(SHAPE, params, batch_rows=32)
    scorer.score(drawn(30))
    assert {time for _, time in scorer.shapes} == {32}
    assert len({padded_length(n) for n in range(1, 1025)}) == 40


@pytest.mark.parametrize("request_", [Request([], [1]), Request([1], []), Request([1], [2] * 33)])
def test_what_has_no_score_is_refused(params, request_):
    with pytest.raises(ValueError, match="request 0"):
        Scorer(SHAPE, params).score([request_])


def test_a_model_that_gives_no_numbers_has_no_score(params):
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(UserError, match="no numbers"):
        Scorer(SHAPE, broken).score(drawn(1))

"""Sliding windows over texts, against all logits token by token, and against a run's validation."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import Config, ModelConfig
from gptjax.data.manifest import Manifest
from gptjax.evaluation.scoring import Scorer
from gptjax.evaluation.setting import Setting
from gptjax.evaluation.texts import count_windows, measure_text, opened, sliding_windows
from gptjax.generation.loaded import LoadedRun
from gptjax.model.gpt import GPT, init_params
from gptjax.tokenizers.plain import ByteTokenizer, CharTokenizer

SHAPE = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, n_vocab=257, dtype="float32")
TEXT = "To be, or not to be, that is the question: Whether 'tis nobler in the mind"


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    """An untrained model of bytes whose predictions differ much."""
    params = jax.tree.map(lambda x: 8 * x, init_params(SHAPE, jax.random.key(1)))
    return LoadedRun(Config(model=SHAPE), params, ByteTokenizer(), 0, "drawn")


@pytest.fixture(scope="module")
def scorer(run) -> Scorer:
    return Scorer(SHAPE, run.params, batch_rows=4)


def by_hand(run: LoadedRun, ids: list[int], stride: int) -> np.ndarray:
    """Each token's loss from the logits of the first window that reaches it."""
    logits = jax.jit(GPT(SHAPE).apply)
    losses, scored = [], 1
    for start in range(0, len(ids), stride):
        window = ids[start : start + 16]
        row = np.zeros((1, 16), int)
        row[0, : len(window)] = window
        logits_TV = np.asarray(logits({"params": run.params}, row), np.float64)[0, :, :257]
        for place in range(scored, min(len(ids), start + 17)):
            logits_V = logits_TV[place - 1 - start]
            losses.append(math.log(np.exp(logits_V).sum()) - logits_V[ids[place]])
            scored = place + 1
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [None, 5, 1])
def test_every_token_but_the_first_is_scored_once(run, scorer, tmp_path, stride):
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT)
    figures = measure_text(Setting(run, scorer, str(path), stride=stride))
    losses = by_hand(run, list(TEXT.encode()), stride or 16)
    assert figures["tokens"] == figures["bytes"] == len(losses) == len(TEXT) - 1
    assert figures["loss"] == pytest.approx(losses.mean(), abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(losses.mean() / math.log(2), abs=1e-5)
    cut = [losses[at : at + 16] for at in range(0, len(losses), 16)]
    residuals = [part.sum() - losses.mean() * len(part) for part in cut]
    error = math.sqrt(np.square(residuals).sum() * len(cut) / (len(cut) - 1)) / len(losses)
    assert figures["stderr"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(("tokens", "context", "stride"), [(1, 4, 4), (2, 4, 4), (9, 4, 4),
        (10, 4, 4), (23, 5, 3), (6, 5, 1), (5, 8, 2), (40, 8, 8)])  # fmt: skip
def test_windows_begin_at_multiples_of_the_stride(tokens, context, stride):
    windows = list(sliding_windows(tokens, context, stride))
    assert [place for w in windows for place in range(w.scored, w.stop)] == list(range(1, tokens))
    assert len(windows) == count_windows(tokens, context, stride)
    for number, window in enumerate(windows):
        assert window.start == number * stride
        assert window.start < window.scored < window.stop <= window.start + context + 1
        assert number == 0 or window.scored - window.start >= context + 1 - stride


def test_documents_end_with_end_of_text_but_the_last(run, scorer, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "cd")))
    with opened(Setting(run, scorer, str(path))) as (line, tokens):
        assert line.stretch(0, tokens).tolist() == [97, 98, 256, 99, 100]


def test_what_cannot_be_measured_is_refused(run, scorer, tmp_path, prepared: Manifest):
    (tmp_path / "short.txt").write_text("a")
    letters = dataclasses.replace(run, tokenizer=CharTokenizer("abc"))
    for model, data, words in [
        (run, tmp_path / "nothing.txt", "nothing.txt"),
        (run, tmp_path / "short.txt", "1 tokens"),
        (letters, prepared.directory, "bytes"),
    ]:
        with pytest.raises(UserError, match=words):
            measure_text(Setting(model, scorer, str(data)))

"""Trials of attention: times, and problems in words."""

import jax
import pytest

from gptjax.config import ModelConfig
from gptjax.model import attention_trial
from gptjax.model.attention import ATTENTIONS, xla_attention
from gptjax.model.attention_trial import KERNELS, try_attention

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, n_vocab=100)


def on_a_gpu(monkeypatch, name, attention):
    """Pretend that this is a GPU, and that a kernel computes `attention`."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(attention_trial.ATTENTIONS, name, attention)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_need_a_gpu(name, monkeypatch):
    assert "this is cpu" in str(try_attention(name, MODEL, 16, inside=False))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    problem = try_attention(name, MODEL, 16, inside=False)
    assert isinstance(problem, str)
    assert "\n" not in problem


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("attn_pdrop", [0.0, 0.1])
def test_what_works_is_timed_with_the_dropout_and_documents_of_the_run(
    attn_pdrop, inside, monkeypatch
):
    calls = []

    def kernel(q, k, v, rate, key, documents):
        calls.append((q.shape, q.dtype.name, rate, key is not None, documents is not None))
        return xla_attention(q, k, v, rate, key, documents)

    on_a_gpu(monkeypatch, "pallas", kernel)
    model = ModelConfig(1, 2, 32, 16, 100, attn_pdrop=attn_pdrop)
    seconds = try_attention("pallas", model, 16, inside)
    assert isinstance(seconds, float)
    assert 0 < seconds < 60
    shape = (attention_trial.ROWS, 16, 2, 16)
    assert set(calls) == {
        (shape, "bfloat16", 0.0, False, inside),
        (shape, "bfloat16", attn_pdrop, attn_pdrop > 0, inside),
    }


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda q, k, v, *_: 1.1 * xla_attention(q, k, v).astype(q.dtype), "values are off by 0.1"),
        (lambda q, k, v, *_: xla_attention(q, jax.lax.stop_gradient(k), v), "dk are off by 1 of"),
        (lambda q, k, v, *_: xla_attention(q, k, v * float("nan")), "values are off by nan"),
        (lambda q, k, v, *_: xla_attention(q, k, v, 0.0, None, q), "expected integers"),
    ],
)
def test_a_kernel_with_other_results_is_refused(wrong, problem, monkeypatch):
    on_a_gpu(monkeypatch, "cudnn", wrong)
    assert problem in str(try_attention("cudnn", MODEL, 16, inside=False))


def test_every_kernel_is_an_attention():
    assert set(KERNELS) < set(ATTENTIONS)

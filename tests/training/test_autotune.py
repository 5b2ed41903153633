"""A micro-batch that does not fit is never chosen, and the compiler is called rarely.

Memory models replace the compiler in tests of the choice; its own report is compared with programs
of known memory.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.base.errors import UserError
from gptjax.cluster.devices import HEADROOM
from gptjax.config import ModelConfig
from gptjax.training import autotune
from gptjax.training.autotune import (
    choose_attention,
    largest_micro_batch,
    memory_limit,
    memory_needed,
)

ROWS = [1, 2, 7, 12, 64, 256, 720, 5040]
MODELS: dict[str, Callable[[int, int, int], int]] = {
    "linear": lambda m, fixed, row: fixed + m * row,
    "quadratic": lambda m, fixed, row: fixed + m * m * row,
    "exponential": lambda m, fixed, row: fixed + row * 2 ** min(m, 200),
    "in steps": lambda m, fixed, row: fixed + -(-m // 4) * 4 * row,
    "with a cliff": lambda m, fixed, row: fixed + m * row * (1 if m < 9 else 3),
    "root": lambda m, fixed, row: fixed + math.isqrt(m) * row,
}
SUPERLINEAR = [name for name in MODELS if name not in ("in steps", "root")]


class Compiler:
    """A memory model that counts what it is asked."""

    def __init__(self, needed: Callable[[int], int]):
        self.needed, self.asked = needed, []

    def __call__(self, micro_batch: int) -> int:
        self.asked.append(micro_batch)
        return self.needed(micro_batch)


def divisors(rows: int) -> list[int]:
    return [m for m in range(1, rows + 1) if rows % m == 0]


@given(
    st.sampled_from(ROWS),
    st.sampled_from(list(MODELS)),
    st.integers(0, 10**6),
    st.integers(1, 10**5),
    st.integers(10**5, 10**8),
)
def test_what_does_not_fit_is_never_chosen(rows, model, fixed, row, limit):
    compiler = Compiler(lambda m: MODELS[model](m, fixed, row))
    if compiler.needed(1) > int(limit * HEADROOM):
        with pytest.raises(UserError):
            largest_micro_batch(rows, compiler, limit)
        assert compiler.asked == [1]
        return
    chosen = largest_micro_batch(rows, compiler, limit)
    assert rows % chosen == 0
    assert compiler.needed(chosen) <= int(limit * HEADROOM)
    if model in SUPERLINEAR:
        fitting_ones = [m for m in divisors(rows) if compiler.needed(m) <= int(limit * HEADROOM)]
        assert chosen == max(fitting_ones)
    # two to begin with, the likeliest, and then half of what is left each time
    assert len(compiler.asked) <= 5 + 2 * math.ceil(math.log2(len(divisors(rows))))
    if model == "linear":
        assert len(compiler.asked) <= 4


def test_a_row_too_many_for_the_memory_is_an_error_with_ways_out():
    with pytest.raises(
        UserError, match=r"a single sequence needs 3\.00 GiB, but only 1\.80 GiB"
    ) as e:
        largest_micro_batch(8, lambda m: 3 * 2**30 * m, 2 * 2**30)
    for word in (
        "of 2.00 GiB",
        "--model.remat full",
        "--train.loss-chunk-tokens",
        "--train.context",
    ):
        assert word in str(e.value)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("guess", [1, 3, 16, 10_000])
def test_a_guess_leads_to_the_same_number_and_a_good_one_there_at_once(rows, guess):
    limit, needed = 40, lambda m: 4 + 2 * m
    compiler = Compiler(needed)
    chosen = largest_micro_batch(rows, compiler, limit, guess)
    assert chosen == largest_micro_batch(rows, needed, limit)
    assert compiler.asked[0] == max(m for m in divisors(rows) if m <= guess)
    if compiler.asked[0] == chosen:
        assert len(compiler.asked) <= 2
    with pytest.raises(UserError, match="a single sequence needs"):
        largest_micro_batch(rows, lambda m: 41 * m, limit, guess)


def test_head_room_is_left():
    assert largest_micro_batch(100, lambda m: m, 100) == 50
    assert largest_micro_batch(90, lambda m: m, 100) == 90


N = 512
MATRIX = N * N * 4  # bytes


def compiled(function: Callable, *, donate: bool) -> jax.stages.Compiled:
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    return jax.jit(function, donate_argnums=(0,) if donate else ()).lower(x).compile()


def test_memory_is_arguments_results_and_what_lies_between():
    def between(x: jax.Array) -> jax.Array:
        return jnp.sin((x @ x) @ x)

    assert memory_needed(compiled(lambda x: x + 1, donate=False)) == pytest.approx(
        2 * MATRIX, rel=0.01
    )
    alone = memory_needed(compiled(between, donate=False))
    assert 3 * MATRIX * 0.99 <= alone <= 4 * MATRIX * 1.01


def test_a_donated_argument_makes_room_for_the_result():
    assert memory_needed(compiled(lambda x: x + 1, donate=True)) == pytest.approx(MATRIX, rel=0.01)


def test_a_compiler_that_does_not_tell_asks_for_a_number():
    silent = types.SimpleNamespace(memory_analysis=lambda: None)
    with pytest.raises(UserError, match=r"give a number as --train\.micro-batch"):
        memory_needed(typing.cast(jax.stages.Compiled, silent))


def test_a_device_of_this_machine_has_a_share_of_its_memory():
    limit = memory_limit()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limit is not None
    assert 2**20 < limit <= memory / jax.local_device_count()


def test_a_device_that_knows_its_limit_is_believed(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 12345, "bytes_in_use": 1})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory_limit() == 12345


def test_a_machine_that_does_not_tell_has_no_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "MEMINFO", tmp_path / "none")
    assert memory_limit() is None


@pytest.mark.parametrize(
    ("limit", "use", "left"),
    [("3000\n", "1000\n", 2000), ("max\n", "1000\n", 8 * 1024), (None, None, 8 * 1024)],
)
def test_a_container_may_have_less_than_its_host(limit, use, left, monkeypatch, tmp_path):
    files = {"MEMINFO": "MemTotal: 9 kB\nMemAvailable: 8 kB\n",
             "CGROUP_LIMIT": limit, "CGROUP_USE": use}  # fmt: skip
    for name, text in files.items():
        monkeypatch.setattr(autotune, name, tmp_path / name)
        if text is not None:
            (tmp_path / name).write_text(text)
    assert memory_limit() == left // jax.local_device_count()


MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=1024)


def with_fields(**fields) -> ModelConfig:
    return dataclasses.replace(MODEL, **fields)


@pytest.mark.parametrize(
    ("fields", "context", "chosen", "reason"),
    [
        ({"attention": "xla"}, 1024, "xla", "as configured"),
        ({"attention": "blockwise"}, 8, "blockwise", "as configured"),
        ({}, 256, "blockwise", "no NVIDIA GPU: this is cpu"),
        ({"dtype": "float32", "attn_pdrop": 0.1}, 255, "xla", "no NVIDIA GPU: this is cpu"),
    ],
)
def test_attention_is_as_configured_or_what_works_here(fields, context, chosen, reason):
    assert choose_attention(with_fields(**fields), context) == (chosen, reason)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attention": "cudnn"}, "cuDNN's attention does not work here: it needs an NVIDIA GPU"),
        ({"attention": "pallas"}, "Pallas' attention does not work here: it needs an NVIDIA GPU"),
        ({"attention": "cudnn", "dtype": "float32"}, "float32"),
        ({"attention": "cudnn", "attn_pdrop": 0.1}, "cannot drop"),
    ],
)
def test_a_kernel_where_it_does_not_work_is_refused(fields, words):
    with pytest.raises(UserError, match=words) as caught:
        choose_attention(with_fields(**fields), 1024)
    assert "pass --model.attention blockwise" in str(caught.value)


@pytest.fixture
def trials(monkeypatch):
    """Results of trials on a GPU that is not there, and the names that were tried."""
    results, tried = {"cudnn": 0.002, "pallas": 0.003, "blockwise": 0.02}, []

    def trial(name, model, context, inside):
        tried.append((name, context, inside))
        return results[name]

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(autotune, "try_attention", trial)
    return results, tried


def test_on_a_gpu_the_fastest_that_works_is_taken(trials):
    results, tried = trials
    attention, why = choose_attention(with_fields(), 512)
    assert attention == "cudnn"
    assert why == ("tried forward and backward: cudnn 2.00 ms; pallas 3.00 ms; blockwise 20.00 ms")
    assert tried == [(name, 512, False) for name in results]
    results |= {"cudnn": "no kernel fits", "pallas": 0.001}
    attention, why = choose_attention(with_fields(), 512)
    assert attention == "pallas"
    assert "not cuDNN's: no kernel fits; pallas 1.00 ms" in why


def test_a_deterministic_run_times_nothing(trials):
    results, tried = trials
    for works, expected in (("0.003", "pallas"), ("it is gone", "blockwise")):
        results["pallas"] = works if works.startswith("it") else float(works)
        for kept in (None, "cudnn"):
            attention, why = choose_attention(with_fields(), 512, kept=kept, deterministic=True)
            assert attention == expected
    assert {name for name, *_ in tried} == {"pallas"}
    assert why.startswith("train.deterministic: no kernel is chosen by its time")
    assert "when it was cudnn" in why


@pytest.mark.parametrize(
    ("fields", "masked_by", "problem"),
    [
        ({"attn_pdrop": 0.1}, None, "it cannot drop weights (model.attn_pdrop 0.1)"),
        ({}, "data.document_mask", "it cannot keep documents apart (data.document_mask)"),
        ({"dtype": "float32"}, None, "it computes in bfloat16 or float16"),
    ],
)
def test_what_cudnn_cannot_do_is_not_tried(fields, masked_by, problem, trials):
    attention, why = choose_attention(with_fields(**fields), 512, masked_by)
    assert attention == "pallas"
    assert f"not cuDNN's: {problem}" in why
    inside = masked_by is not None
    assert trials[1] == [("pallas", 512, inside), ("blockwise", 512, inside)]


def test_a_resumed_run_keeps_its_attention_while_that_works(trials):
    results, tried = trials
    attention, why = choose_attention(with_fields(), 512, kept="pallas")
    assert (attention, why) == ("pallas", "kept from the last start: 3.00 ms")
    assert tried == [("pallas", 512, False)]
    results["pallas"] = "it is gone"
    attention, why = choose_attention(with_fields(), 512, kept="pallas")
    assert attention == "cudnn"
    assert why.endswith("; changed since the last start, when it was pallas")
    attention, why = choose_attention(with_fields(), 512, kept="auto")  # from a CPU
    assert "changed" not in why


def test_a_run_that_moves_to_processors_says_that_its_attention_has_changed():
    attention, why = choose_attention(with_fields(), 512, kept="cudnn")
    assert attention == "blockwise"
    assert why == "no NVIDIA GPU: this is cpu; changed since the last start, when it was cudnn"


@pytest.mark.parametrize(("kept", "context"), [("xla", 512), ("blockwise", 128)])
def test_a_change_from_an_attention_that_auto_never_takes_is_said(kept, context):
    """A flag chose it; auto has another for this context."""
    _, why = choose_attention(with_fields(), context, kept=kept)
    assert why.endswith(f"; changed since the last start, when it was {kept}")


def test_a_process_that_cannot_keep_what_process_0_keeps_does_not_wait_alone(trials, monkeypatch):
    trials[0]["pallas"] = "not on this node"
    said = []
    monkeypatch.setattr(autotune, "broadcast_from_0", lambda works: said.append(works) or True)
    attention, why = choose_attention(with_fields(), 512, kept="pallas")
    assert (attention, said) == ("blockwise", [False])
    assert why.startswith("not pallas, which works on process 0: not on this node")


def test_all_processes_take_the_choice_of_process_0(trials, monkeypatch):
    monkeypatch.setattr(autotune, "broadcast_from_0", lambda index: 1)
    assert choose_attention(with_fields(), 512)[0] == "pallas"
    trials[0]["pallas"] = "not on this node"  # then the start fails, naming both
    assert choose_attention(with_fields(), 512)[0] == "cudnn"


def test_memory_that_grows_slower_than_it_began_is_used_to_the_full():
    assert largest_micro_batch(4, {1: 10, 2: 12, 4: 13}.__getitem__, 17) == 4
    full_chunk = {m: 10 + 3 * min(m, 4) + m for m in divisors(256)}
    for limit in range(20, 400, 7):
        fitting = [m for m, needed in full_chunk.items() if needed <= int(limit * HEADROOM)]
        assert largest_micro_batch(256, full_chunk.__getitem__, limit) == max(fitting)

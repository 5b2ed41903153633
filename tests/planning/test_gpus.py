"""Every GPU that can be planned for has a peak, and is found however it is spelt."""

import dataclasses

import pytest

from gptjax.base.errors import ConfigError
from gptjax.cluster.devices import peak_flops
from gptjax.config import ModelConfig
from gptjax.planning.gpus import GPUS, find_gpu

MODEL = ModelConfig(n_vocab=50257)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_gpu_has_a_peak_and_links(gpu):
    assert (peak_flops(gpu.kind, "float32") or 0) > 1e12
    assert peak_flops(gpu.kind, gpu.dtype("bfloat16")) is not None
    assert 7e9 < gpu.memory < 3e11
    assert 1e9 <= gpu.network <= gpu.bus < 1e12
    assert "bit/s" in gpu.source
    assert find_gpu(gpu.name) == find_gpu(gpu.kind) == gpu


@pytest.mark.parametrize(
    ("name", "share", "relative"),
    [
        ("a100", 0.56, None), ("a100-40", 0.56, None), ("h100", 0.36, None), ("b200", 0.22, None),
        ("h200", 0.36, "H100"), ("l40s", 0.36, "H100"), ("rtxpro6000", 0.36, "H100"),
        ("gb200", 0.22, "B200"), ("b300", 0.22, "B200"), ("rtx4090", 0.56, "A100"),
        ("gtx1070ti", 0.56, "A100"),
    ],
)  # fmt: skip
def test_utilisation_is_a_public_figure_or_a_relative_s(name, share, relative):
    found = GPUS[name].mfu
    assert (found.share, found.relative) == (share, relative)
    assert (relative or name[:4].upper()) in found.source


def test_public_rates_are_these_shares_of_the_peak():
    """Tokens a second on each device, times GPT-2 124M's FLOPs per token, over the peak."""
    flops = 798.0e6
    for name, rates in {"a100": [218e3], "h100": [422e3, 468e3], "b200": [621e3]}.items():
        peak = peak_flops(GPUS[name].kind, "bfloat16") or 0
        shares = [rate * flops / peak for rate in rates]
        assert sum(shares) / len(shares) == pytest.approx(GPUS[name].mfu.share, abs=0.005)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100", "h100"), ("RTX 4090", "rtx4090"), ("4090", "rtx4090"), ("a100-40GB", "a100-40"),
        ("GTX 1070 Ti", "gtx1070ti"), ("A100-80GB", "a100"), ("nvidia-b200", "b200"),
        ("RTX 5090", "rtx5090"), ("5080", "rtx5080"), ("RTX PRO 6000", "rtxpro6000"),
        ("B300", "b300"), ("NVIDIA GB200", "gb200"),
    ],
)  # fmt: skip
def test_spelling_does_not_matter(spelling, name):
    assert find_gpu(spelling).name == name


def test_a_gpu_that_is_not_known_is_told_with_the_nearest_and_all():
    with pytest.raises(ConfigError) as caught:
        find_gpu("h10")
    assert caught.value.problems == [
        f"unknown GPU 'h10' (did you mean h100?); expected one of {', '.join(GPUS)}"
    ]


@pytest.mark.parametrize(
    ("name", "wanted", "planned"),
    [
        ("h100", "bfloat16", "bfloat16"), ("gtx1070ti", "bfloat16", "float32"),
        ("t4", "bfloat16", "float32"), ("v100", "bfloat16", "float32"),
        ("t4", "float16", "float16"), ("gtx1070ti", "float16", "float32"),
        ("b200", "float32", "float32"),
    ],
)  # fmt: skip
def test_a_type_that_a_gpu_lacks_becomes_float32(name, wanted, planned):
    assert GPUS[name].dtype(wanted) == planned


@pytest.mark.parametrize(
    ("name", "changes", "context", "expected"),
    [
        ("h100", {}, 1024, "cudnn"),
        ("h100", {"dtype": "float32"}, 1024, "blockwise"),
        ("h100", {"dtype": "float32"}, 255, "xla"),
        ("h100", {"attn_pdrop": 0.1}, 1024, "pallas"),
        ("h100", {"attn_pdrop": 0.1, "dtype": "float32"}, 1024, "blockwise"),
        ("h100", {"n_head": 64}, 1024, "pallas"),
        ("h100", {"n_head": 4}, 1024, "blockwise"),
        ("h100", {"attention": "xla"}, 1024, "xla"),
        ("t4", {"dtype": "float16"}, 1024, "blockwise"),
        ("t4", {"dtype": "float16", "attn_pdrop": 0.1}, 1024, "blockwise"),
        ("t4", {"dtype": "float16", "attention": "cudnn"}, 1024, "blockwise"),
    ],
)  # fmt: skip
def test_attention_is_what_the_trainer_would_take(name, changes, context, expected):
    assert GPUS[name].attention(dataclasses.replace(MODEL, **changes), context) == expected


def test_attention_inside_documents_is_not_cudnn_s():
    for name, expected in (("h100", "pallas"), ("t4", "blockwise")):
        model = dataclasses.replace(MODEL, dtype=GPUS[name].dtype(MODEL.dtype))
        assert GPUS[name].attention(model, 1024, masked_by="data.document_mask") == expected

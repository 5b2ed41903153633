"""Closed forms agree with the real model and with XLA's own count; peaks are known or None."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gptjax.base.terminal import gibibytes
from gptjax.base.tree import named_leaves
from gptjax.cluster.devices import matmul_dtype, peak_flops, peak_tokens_per_second
from gptjax.config import Config, ModelConfig, TrainConfig
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.size import flops_per_token, matmul_parameters

GPT2 = ModelConfig(n_vocab=50257)
SMALL = ModelConfig(n_layer=3, n_head=2, n_embd=16, n_ctx=24, n_vocab=130)
GPT1_FIELDS = {"norm": "post", "final_norm": False, "scale_residual_init": False}


@pytest.mark.parametrize("tied", [True, False])
def test_multiplied_weights_are_the_kernels_and_one_padded_table(tied):
    cfg = dataclasses.replace(SMALL, tied_head=tied)
    leaves = named_leaves(parameter_shapes(cfg))
    kernels = sum(leaf.size for name, leaf in leaves.items() if name.endswith("kernel"))
    head = leaves["wte/embedding" if tied else "lm_head"]
    assert head.shape[0] == 256
    assert matmul_parameters(cfg) == kernels + head.size


@pytest.mark.parametrize(
    ("attention", "mega"), [("causal", 798.0), ("full", 854.7), ("none", 741.4)]
)
def test_operations_of_gpt2_small(attention, mega):
    assert flops_per_token(GPT2, 1024, attention) / 1e6 == pytest.approx(mega, abs=0.05)


def test_all_attention_is_what_the_compiler_counts():
    context = 1024  # half of the attention would be a tenth of the sum
    cfg = ModelConfig(
        n_layer=2, n_ctx=context, n_vocab=1000, dtype="float32", attention="xla", unroll=2
    )

    def loss(params, tokens_BT):
        logits_BTV = GPT(cfg).apply({"params": params}, tokens_BT)
        return jnp.mean(logits_BTV)

    tokens_BT = jax.ShapeDtypeStruct((1, context), jnp.int32)
    step = jax.jit(jax.value_and_grad(loss)).lower(parameter_shapes(cfg), tokens_BT)
    counted = step.compile().cost_analysis()["flops"] / tokens_BT.size
    assert flops_per_token(cfg, context, "full") == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float16", 989.4),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA B300 SXM6 AC", "bfloat16", 2250),
        ("NVIDIA GB200", "tf32", 1250),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "bfloat16", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "float32", 120),
        ("NVIDIA GeForce RTX 5090", "bfloat16", 209.5),
        ("NVIDIA GeForce RTX 5080", "bfloat16", 112.6),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA A100-PCIE-40GB", "bfloat16", 312),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 3090", "float16", 71),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla T4", "float16", 65),
        ("NVIDIA GeForce GTX 1070 Ti", "float32", 8.2),
    ],
)
def test_peaks_that_are_known(kind, dtype, tera):
    assert peak_flops(kind, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("cpu", "float32"),
        ("TPU v4", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16"),
        ("NVIDIA GB300", "bfloat16"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "bfloat16"),
        ("NVIDIA L40", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16"),
        ("Tesla V100-SXM2-16GB", "bfloat16"),
        ("Tesla T4", "tf32"),
        ("NVIDIA GeForce GTX 1070 Ti", "float16"),
        ("NVIDIA H200", "int8"),
    ],
)
def test_a_peak_that_is_not_known_is_none_and_never_a_relatives(kind, dtype):
    assert peak_flops(kind, dtype) is None


@pytest.mark.parametrize(
    ("dtype", "float32_matmul", "expected"),
    [
        ("float32", "highest", "float32"), ("float32", "tf32", "tf32"),
        ("bfloat16", "tf32", "bfloat16"), ("float16", "highest", "float16"),
    ],
)  # fmt: skip
def test_only_float32_products_may_be_tf32(dtype, float32_matmul, expected):
    assert matmul_dtype(ModelConfig(dtype=dtype, float32_matmul=float32_matmul)) == expected


def test_devices_at_their_peak_do_so_many_tokens():
    config, kind = Config(model=GPT2), "NVIDIA A100-SXM4-80GB"
    rate = peak_tokens_per_second(config, kind, 8)
    assert rate == pytest.approx(8 * 312e12 / 798.0e6, rel=1e-4)
    exact = Config(model=dataclasses.replace(GPT2, dtype="float32"))
    assert peak_tokens_per_second(exact, kind, 8) == pytest.approx(rate / 16)
    short = Config(model=GPT2, train=TrainConfig(context=256))
    expected = 8 * 312e12 / flops_per_token(GPT2, 256)
    assert peak_tokens_per_second(short, kind, 8) == pytest.approx(expected)
    assert peak_tokens_per_second(config, "cpu", 8) is None


def test_bytes_are_written_with_three_digits():
    sizes = [5.126, 9.996, 45.04, 179.1, 1999.6]
    assert [gibibytes(n * 2**30) for n in sizes] == [
        "5.13 GiB", "10.00 GiB", "45.0 GiB", "179 GiB", "2,000 GiB",
    ]  # fmt: skip

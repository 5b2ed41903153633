"""What the GPU gets, proven without one: the update lowered for CUDA, read as StableHLO.

cuDNN's versions are asked for while lowering, so their answers are given here.
"""

import re
from functools import cache

import jax
import pytest
from jax.sharding import PartitionSpec as P

from gptjax.config import ModelConfig, OptimConfig
from gptjax.training.mesh import BatchLayout, abstract_batch, make_mesh, replicated
from gptjax.training.optimizer import make_optimizer
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.state import abstract_state
from gptjax.training.step import make_train_step, make_update
from gptjax.training.tasks import TASKS

LAYOUT = BatchLayout(micro_steps=2, micro_batch=2, row_groups=8, context=192)
CHUNK, V, D, F = 96, 768, 128, 512
MICRO_TOKENS = LAYOUT.micro_batch * LAYOUT.context


@cache
def lowered(dtype: str, attention: str) -> str:
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    answers = {
        "check_cudnn_version": lambda: 91000,
        "check_compute_capability": lambda *_: True,
        "is_cuda_compute_capability_equal": lambda *_: False,
    }
    model = ModelConfig(2, 2, D, LAYOUT.context, 700, dtype=dtype, attention=attention)
    optim, mesh = OptimConfig(), make_mesh(8)
    optimizer, schedule = make_optimizer(optim, 10), learning_rate_schedule(optim, 10)
    task = TASKS["lm"](model, CHUNK)
    update = make_update(task, optimizer, schedule, mesh, P(), LAYOUT.micro_steps, dropout=False)
    step = make_train_step(update, replicated(mesh))
    state = abstract_state(model, optimizer, mesh)
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in answers.items():
            patch.setattr(cudnn, name, answer)
        traced = step.trace(state, abstract_batch(mesh, LAYOUT), key)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def products(program: str) -> set[str]:
    """Every matrix product with a weight as `left x right -> result`."""
    found = re.findall(
        r"dot_general.*?: \(tensor<(\w+)>, tensor<(\w+)>\) -> tensor<(\w+)>", program
    )
    return {f"{a} x {b} -> {c}" for a, b, c in found}


def test_flash_attention_is_one_kernel_forward_and_one_backward():
    program = lowered("bfloat16", "cudnn")
    kernels = re.findall(r"custom_call @__cudnn\$(\w+)", program)
    assert sorted(kernels) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert f"x{LAYOUT.context}x{LAYOUT.context}x" not in program  # no T x T weights


def test_bfloat16_products_have_bfloat16_factors_and_float32_weight_gradients():
    found = products(lowered("bfloat16", "cudnn"))
    m = MICRO_TOKENS
    assert {
        f"{m}x{D}xbf16 x {D}x{3 * D}xbf16 -> {m}x{3 * D}xbf16",
        f"{m}x{D}xbf16 x {D}x{F}xbf16 -> {m}x{F}xbf16",
        f"{m}x{D}xbf16 x {m}x{F}xbf16 -> {D}x{F}xf32",
        f"{CHUNK}x{D}xbf16 x {V}x{D}xbf16 -> {CHUNK}x{V}xf32",
        f"{CHUNK}x{V}xbf16 x {V}x{D}xbf16 -> {CHUNK}x{D}xbf16",
        f"{CHUNK}x{V}xbf16 x {CHUNK}x{D}xbf16 -> {V}x{D}xf32",
    } <= found
    assert all(product.count("bf16") >= 2 for product in found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_helps_processors_is_not_there(dtype):
    assert "optimization_barrier" not in lowered(dtype, "xla")


def test_no_array_holds_the_logits_of_a_whole_micro_batch():
    program = lowered("bfloat16", "cudnn")
    assert f"tensor<{CHUNK}x{V}xf32>" in program
    for shape in re.findall(r"tensor<([\dx]+)x\w+>", program):
        sizes = [int(n) for n in shape.split("x")]
        assert not {V, MICRO_TOKENS} <= set(sizes), shape

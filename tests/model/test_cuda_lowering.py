"""The GPU's program, checked without a GPU: the step lowered for CUDA, read as StableHLO.

Lowering asks for cuDNN's version, so the tests supply one.
"""

import importlib
import re
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import jax
import pytest

from gptjax.cluster.mesh import BatchLayout, make_mesh
from gptjax.config import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.model.products import matmul_precision
from gptjax.training import program as program_module
from gptjax.training.program import assemble

LAYOUT = BatchLayout(micro_steps=2, micro_batch=2, row_groups=8, context=192)
CHUNK, V, D, F = 96, 768, 128, 512
MICRO_TOKENS = LAYOUT.micro_batch * LAYOUT.context
A100 = SimpleNamespace(platform="gpu", compute_capability="8.0")
GTX1070TI = SimpleNamespace(platform="gpu", compute_capability="6.1")


@cache
def lowered(
    dtype: str,
    attention: str,
    float32_matmul="highest",
    chunk: int = CHUNK,
    remat: str = "none",
    attn_pdrop: float = 0.0,
    documents: bool = False,
) -> str:
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    answers = {
        "check_cudnn_version": lambda: 91000,
        "check_compute_capability": lambda *_: True,
        "is_cuda_compute_capability_equal": lambda *_: False,
    }
    model = ModelConfig(
        2, 2, D, LAYOUT.context, 700, dtype=dtype, attention=attention,
        float32_matmul=float32_matmul, remat=remat, attn_pdrop=attn_pdrop,
    )  # fmt: skip
    train = TrainConfig(max_steps=10, loss_chunk_tokens=chunk)
    config = Config(model=model, data=DataConfig(document_mask=documents), train=train)
    program = assemble(config, make_mesh(8))
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in answers.items():
            patch.setattr(cudnn, name, answer)
        with suppress(ImportError):  # Pallas asks from jax 0.11 on
            gpu_info = importlib.import_module("jax._src.pallas.triton.gpu_info")
            patch.setattr(gpu_info, "get_gpu_info", lambda: SimpleNamespace(compute_capability=80))
        # the mesh here is of processors, whose products are exact
        on_a100 = lambda cfg, _: matmul_precision(cfg, A100)  # noqa: E731
        patch.setattr(program_module, "matmul_precision", on_a100)
        traced = program.train_step.trace(*program.arguments(LAYOUT))
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


def used_kernels(program: str) -> list[str]:
    """Names of the kernels of attention; XLA drops those whose results nobody reads."""
    found = []
    for function in program.split("func.func"):
        for call in re.finditer(
            r"(%\w+)(?::\d)? = stablehlo.custom_call @__(?:cudnn\$(\w+)|gpu\$xla.gpu.triton)"
            r'[^\n]*?(?:name = "(\w+)"[^\n]*)?\n',
            function,
        ):
            if re.search(rf"{call[1]}\b", function[call.end() :]):
                found.append(call[2] or call[3])
    return found


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
@pytest.mark.parametrize("attention", ["cudnn", "pallas"])
def test_rematerialisation_runs_one_kernel_each_way(attention, remat):
    """The loops over layers have one body each way, so a call is a kernel a layer."""
    kernels = used_kernels(lowered("bfloat16", attention, remat=remat))
    forward, backward = {
        "cudnn": ("fmhaSoftmax", "fmhaSoftmaxBackward"),
        "pallas": ("flash_attention_forward", "flash_attention_backward"),
    }[attention]
    assert kernels == [forward, backward]


def test_dropout_and_documents_are_inside_the_kernels():
    program = lowered("bfloat16", "pallas", attn_pdrop=0.1, documents=True)
    assert program.count("custom_call @__gpu$xla.gpu.triton") == 2
    assert f"{LAYOUT.context}x{LAYOUT.context}x" not in program  # neither weights nor masks


def test_bfloat16_products_have_bfloat16_factors_and_float32_weight_gradients():
    found = products(lowered("bfloat16", "cudnn"))
    m = MICRO_TOKENS
    assert {
        f"{m}x{D}xbf16 x {D}x{D}xbf16 -> {m}x{D}xbf16",  # query, key and value apart
        f"{m}x{3 * D}xbf16 x {D}x{3 * D}xbf16 -> {m}x{D}xbf16",  # and their gradients together
        f"{m}x{D}xbf16 x {D}x{F}xbf16 -> {m}x{F}xbf16",
        f"{m}x{D}xbf16 x {m}x{F}xbf16 -> {D}x{F}xf32",
        f"{CHUNK}x{D}xbf16 x {V}x{D}xbf16 -> {CHUNK}x{V}xf32",
        f"{CHUNK}x{V}xbf16 x {V}x{D}xbf16 -> {CHUNK}x{D}xbf16",
        f"{CHUNK}x{V}xbf16 x {CHUNK}x{D}xbf16 -> {V}x{D}xf32",
    } <= found
    assert all(product.count("bf16") >= 2 for product in found)


@pytest.mark.parametrize("attention", ["xla", "blockwise"])
def test_products_of_attention_have_narrow_factors_forward_and_backward(attention):
    found = products(lowered("bfloat16", attention))
    assert all(product.count("bf16") >= 2 for product in found), found
    b, t, k = LAYOUT.micro_batch, LAYOUT.context, D // 2  # two heads
    t, s = {"xla": (t, t), "blockwise": (64, t)}[attention]
    scores, values = f"{b}x2x{t}x{s}", f"{b}x2x{k}x{s}xbf16"
    assert {f"{b}x2x{t}x{k}xbf16 x {values} -> {scores}xf32",
            f"{scores}xbf16 x {values} -> {b}x2x{t}x{k}xbf16"} <= found  # fmt: skip


def precisions(program: str) -> set[str]:
    """What products ask for: precision of their factors, and an algorithm where one is named."""
    lines = [line for line in program.splitlines() if "dot_general" in line]
    assert len(lines) >= 15
    found = [re.search(r"precision = (\[\w+, \w+\])(, algorithm = <[^>]*>)?", x) for x in lines]
    return {match[0] if match else "none" for match in found}


@pytest.mark.parametrize(
    ("dtype", "attention", "float32_matmul", "chunk"),
    [
        ("bfloat16", "cudnn", "highest", CHUNK), ("bfloat16", "blockwise", "tf32", 0),
        ("float16", "xla", "highest", CHUNK),
    ],
)  # fmt: skip
def test_narrow_products_ask_for_nothing_that_costs_xla_its_kernels(
    dtype, attention, float32_matmul, chunk
):
    program = lowered(dtype, attention, float32_matmul, chunk)
    assert precisions(program) == {"precision = [DEFAULT, DEFAULT]"}


def test_float32_products_are_exact_or_tf32_by_name():
    assert precisions(lowered("float32", "xla")) == {"precision = [HIGHEST, HIGHEST]"}
    (tf32,) = precisions(lowered("float32", "xla", "tf32"))
    assert "lhs_precision_type = tf32, rhs_precision_type = tf32, accumulation_type = f32" in tf32
    assert "allow_imprecise_accumulation = false" in tf32


def test_devices_without_tf32_multiply_exactly():
    """XLA refuses to compile the algorithm for them."""
    model = ModelConfig(dtype="float32", float32_matmul="tf32")
    for device in (jax.devices("cpu")[0], GTX1070TI):
        assert matmul_precision(model, device) == "highest"
    for capability in ("8.6", "9.0", "12.0"):
        card = SimpleNamespace(platform="gpu", compute_capability=capability)
        assert matmul_precision(model, card) == matmul_precision(model, A100) != "highest"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_helps_processors_is_not_there(dtype):
    """The barriers for GPUs are a norm's, backwards, and that of query, key and value."""
    found = re.findall(r"(?:%\w+)(:\d)? = stablehlo.optimization_barrier", lowered(dtype, "xla"))
    assert sorted(found) == ["", "", "", ":3"]  # the norms of the scanned block and the last one


def test_biases_and_the_gelu_are_in_the_form_that_cublas_takes_in():
    """Sums in the type of the product; the GELU of a matrix, from one matrix and constants."""
    program, m = lowered("bfloat16", "cudnn"), MICRO_TOKENS
    biases = re.findall(r"stablehlo.convert .*tensor<(\d+)xf32>\) -> tensor<\1xbf16>", program)
    assert sorted(map(int, biases)) == [D] * 5 + [F]
    assert re.findall(r"stablehlo.tanh .*: tensor<(\d+x\d+xbf16)>", program) == [f"{m}x{F}xbf16"]


def test_no_array_holds_the_logits_of_a_whole_micro_batch():
    program = lowered("bfloat16", "cudnn")
    assert f"tensor<{CHUNK}x{V}xf32>" in program
    for shape in re.findall(r"tensor<([\dx]+)x\w+>", program):
        sizes = [int(n) for n in shape.split("x")]
        assert not {V, MICRO_TOKENS} <= set(sizes), shape

"""What XLA makes of our programs for an H100 and an A100, neither of which is here.

The compiler decides much that lowered programs do not show: types of products, copies, the place of
collectives. These are facts of the optimised programs, no measurements.
"""

import dataclasses
import re
from functools import cache
from importlib.util import find_spec

import pytest

from gptjax.config import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.config.presets import load_config
from gptjax.model.places import leaves
from gptjax.planning.absent import become_compiler
from gptjax.planning.findings import findings, large_copies
from gptjax.planning.gpus import find_gpu
from gptjax.planning.instructions import arrays_of
from gptjax.planning.kernels import ATTENTION, FLOAT32, NARROW, REST, Kernel
from gptjax.planning.layout import Layout, with_vocabulary
from gptjax.planning.overlap import Crossing, crossings
from gptjax.planning.roofline import by_class, card_of, roofline_seconds
from gptjax.planning.schedule import Links
from gptjax.planning.search import for_gpu
from gptjax.planning.targets import find_target

IS_INSTALLED = find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda12")
pytestmark = pytest.mark.skipif(
    not IS_INSTALLED, reason="jax's CUDA plugin is not here: make setup-compile"
)
LAYERS, WIDTH, CONTEXT, MICRO_STEPS, ROWS = 2, 128, 256, 2, 4
DROPOUT = {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}
GPT1 = {"norm": "post", "final_norm": False, "scale_residual_init": False}
LINKS = Links(360e9, 40e9)
ONE = Layout()


@cache
def compiler(gpu: str, layout: Layout):
    become_compiler()
    from gptjax.planning.elsewhere import GpuCompiler

    return GpuCompiler(find_target(find_gpu(gpu)), layout)


def small(layout: Layout = ONE, document_mask: bool = False, **model: object) -> Config:
    """Two layers in the types and with the heads of GPT-2, and two micro-steps."""
    shape = ModelConfig(LAYERS, 2, WIDTH, CONTEXT, 700, dtype="bfloat16", attention="auto")
    train = TrainConfig(
        max_steps=10, micro_batch=ROWS, loss_chunk_tokens=CONTEXT,
        batch_tokens=MICRO_STEPS * ROWS * layout.groups * CONTEXT,
    )  # fmt: skip
    data = DataConfig(document_mask=document_mask)
    return Config(model=dataclasses.replace(shape, **model), train=train, data=data)


@cache
def step(gpu: str, config: Config, layout: Layout = ONE):
    """The compiled train step, with the types and the attention that the GPU would have."""
    return compiler(gpu, layout).step(for_gpu(config, find_gpu(gpu)))


def moved(gpu: str, config: Config, layout: Layout) -> list[Crossing]:
    program, card = step(gpu, config, layout), card_of(find_target(find_gpu(gpu)))
    return crossings(program.module, program.kernels, card, layout, LINKS)


def described(found: list[Kernel]) -> list[str]:
    return sorted({f"{kernel.shape} of {kernel.source}" for kernel in found})


def wide_products(found: list[Kernel]) -> list[str]:
    return described([kernel for kernel in found if kernel.kind == FLOAT32])


def runs_of_attention(found: list[Kernel]) -> dict[str, float]:
    """Runs of flash attention's kernels by their name, in one step."""
    runs: dict[str, float] = {}
    for kernel in found:
        if kernel.kind == ATTENTION:
            runs[kernel.operation] = runs.get(kernel.operation, 0) + kernel.times
    return runs


def copies_of_weights(found: list[Kernel], model: ModelConfig) -> list[str]:
    """Kernels that only move float32 numbers in the shape of a block's matrix."""
    d = model.n_embd
    shapes = {(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)}
    return described(
        [
            kernel
            for kernel in found
            if kernel.only_moves
            and any(
                tuple(map(int, dims.split(",")))[-2:] in shapes
                for dims in re.findall(r"f32\[([\d,]+)\]", kernel.shape)
            )
        ]
    )


def float32_activations(found: list[Kernel], elements: int) -> list[str]:
    """Results within the layers that are float32 and have a number for each of a token's width."""
    return described(
        [
            kernel
            for kernel in found
            if kernel.kind == REST
            and "/h.layer/" in kernel.source
            and any(a.dtype == "f32" and a.elements >= elements for a in arrays_of(kernel.shape))
        ]
    )


def check_step(gpu: str, config: Config, layout: Layout = ONE) -> list[Kernel]:
    """The kernels of a step whose products are narrow and whose flash attention runs once."""
    found = step(gpu, config, layout).kernels
    assert wide_products(found) == []
    products = sum(kernel.times for kernel in found if kernel.kind == NARROW)
    assert products >= MICRO_STEPS * (12 * LAYERS + 3 * ROWS)  # a chunk of logits for each row
    runs = runs_of_attention(found)
    if config.model.attention == "auto":
        again = 2 if config.model.remat == "full" else 1  # which keeps nothing, and says so
        assert len(runs) == 2
        for name, times in runs.items():
            is_forward = not any(k.is_backward for k in found if k.operation == name)
            assert times == MICRO_STEPS * LAYERS * (again if is_forward else 1)
    return found


def test_a_step_multiplies_narrow_numbers_and_its_gradients_cross_once():
    layout = Layout(data=2)
    config = small(layout)
    check_step("h100", config, layout)
    found = [c for c in moved("h100", config, layout) if c.payload >= 256]
    assert {(c.kind, c.axis, c.times) for c in found} == {("all-reduce", "data", 1)}
    padded = sum(leaf.elements for leaf in leaves(config.model))
    assert sum(c.payload for c in found) == pytest.approx(4 * padded, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "layout", "changes"),
    [
        ("a100", ONE, {}),
        ("h100", ONE, {"document_mask": True, "remat": "dots", **DROPOUT}),
        ("a100", ONE, {"document_mask": True, **GPT1, **DROPOUT}),
        ("h100", ONE, {"attention": "blockwise", **DROPOUT}),
        ("a100", ONE, {"attention": "xla", "document_mask": True, "dtype": "float16"}),
        ("h100", Layout(2, 2, 2), {"remat": "block", "tied_head": False}),
    ],
    ids=str,
)
def test_no_product_is_float32_and_no_kernel_of_attention_runs_twice(gpu, layout, changes):
    check_step(gpu, small(layout, **changes), layout)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize(
    "changes",
    [
        {"document_mask": True}, DROPOUT, {"remat": "dots"}, {"remat": "block"}, {"remat": "full"},
        {"remat": "block", **DROPOUT}, {"remat": "full", **DROPOUT}, {"attention": "blockwise"},
        {"attention": "xla"}, {"unroll": LAYERS}, {"tied_head": False}, {"dtype": "float16"},
    ],
    ids=str,
)  # fmt: skip
def test_no_change_of_a_model_brings_a_float32_product(gpu, changes):
    check_step(gpu, small(**changes))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", [Layout(fsdp=2), Layout(tensor=2)], ids=str)
def test_no_product_is_float32_where_one_axis_divides_the_model(layout):
    check_step("h100", small(layout), layout)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_no_weight_is_copied_in_float32():
    config = small(unroll=LAYERS)
    assert copies_of_weights(step("h100", config).kernels, config.model) == []


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", pytest.param("a100", marks=pytest.mark.exhaustive)])
def test_evaluation_multiplies_narrow_numbers(gpu):
    config = for_gpu(small(), find_gpu(gpu))
    assert wide_products(compiler(gpu, ONE).evaluation(config).kernels) == []


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", pytest.param("a100", marks=pytest.mark.exhaustive)])
def test_a_token_reads_the_head_of_gpt2_as_it_is(gpu):
    """XLA treats the head of a small vocabulary in another way."""
    config = for_gpu(small(n_layer=1, n_head=12, n_embd=768, n_vocab=50257), find_gpu(gpu))
    found = compiler(gpu, ONE).decoding(config).kernels
    assert wide_products(found) == []
    head = config.model.padded_vocab * config.model.n_embd
    assert [k.shape for k in found if any(a.elements >= head for a in arrays_of(k.shape))] == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_float32_model_is_compiled_as_such_and_no_fault():
    program = step("h100", small(dtype="float32"))
    assert wide_products(program.kernels) != []
    card = card_of(find_target(find_gpu("h100")))
    said = findings(program.kernels, [], card, small(dtype="float32"), MICRO_STEPS)
    assert not any("float32" in sentence for sentence in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "per_token", "rest_per_token", "seconds"),
    [
        ("h100", 3.35e6, 1.42e6, 0.66),
        pytest.param("a100", 3.57e6, 1.65e6, 1.80, marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_of_gpt2_is_as_good_as_it_has_been(gpu, per_token, rest_per_token, seconds):
    """Half a million tokens in micro-batches of 32, layers unrolled: bounds on bytes and time."""
    config = with_vocabulary(load_config("gpt2_124m"))
    train = dataclasses.replace(config.train, micro_batch=32, updates_per_call=1)
    model = dataclasses.replace(config.model, unroll=config.model.n_layer)
    config = dataclasses.replace(config, train=train, model=model)
    program, card = step(gpu, config), card_of(find_target(find_gpu(gpu)))
    found, tokens = program.kernels, config.train.batch_tokens
    assert tokens == 2**19
    assert wide_products(found) == []
    assert set(runs_of_attention(found).values()) == {16 * 12}
    assert copies_of_weights(found, config.model) == []
    assert [k.shape for k in large_copies(found) if "f32" in k.shape] == []
    shares = by_class(found, card)
    assert shares[NARROW].flops == pytest.approx(388.7e12, rel=0.01)
    assert sum(share.bytes for share in shares.values()) / tokens < per_token
    assert shares[REST].bytes / tokens < rest_per_token
    assert roofline_seconds(found, card) < seconds
    if gpu == "h100":  # XLA writes some gradients of norms in float32 for an A100
        assert float32_activations(found, 32 * config.context * config.model.n_embd) == []

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
            name = kernel.source.rpartition("/")[2]
            runs[name] = runs.get(name, 0) + kernel.times
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


@pytest.mark.parametrize("gpu", ["h100", pytest.param("a100", marks=pytest.mark.slow)])
def test_a_step_multiplies_narrow_numbers_and_runs_flash_attention_once(gpu):
    found = step(gpu, small()).kernels
    assert wide_products(found) == []
    products = sum(kernel.times for kernel in found if kernel.kind == NARROW)
    assert products >= MICRO_STEPS * (12 * LAYERS + 3 * ROWS)  # four chunks of logits
    assert set(runs_of_attention(found).values()) == {MICRO_STEPS * LAYERS}
    assert sum(kernel.kind == ATTENTION and kernel.is_backward for kernel in found) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize(
    "changes",
    [
        {"document_mask": True}, {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
        {"remat": "dots"}, {"remat": "block"}, {"remat": "full"}, {"attention": "blockwise"},
        {"attention": "xla"}, {"unroll": LAYERS}, {"tied_head": False}, {"dtype": "float16"},
    ],
    ids=str,
)  # fmt: skip
def test_no_product_is_float32_in_a_program_of_narrow_numbers(gpu, changes):
    found = step(gpu, small(**changes)).kernels
    assert wide_products(found) == []
    assert any(kernel.kind == NARROW for kernel in found)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(fsdp=2), Layout(tensor=2), Layout(2, 2, 2)], ids=str)
def test_no_product_is_float32_where_the_model_is_divided(layout):
    assert wide_products(step("h100", small(layout), layout).kernels) == []


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "block", "full"])
def test_flash_attention_runs_forward_once_whatever_is_recomputed(remat):
    runs = runs_of_attention(step("h100", small(remat=remat)).kernels)
    again = 2 if remat == "full" else 1  # which keeps nothing, and says so
    assert {n / MICRO_STEPS / LAYERS for n in runs.values()} <= {1, again}
    assert len(runs) >= 2


@pytest.mark.slow
def test_gradients_cross_once_a_step_and_nothing_else_does():
    layout = Layout(data=4)
    config = small(layout)
    found = [c for c in moved("h100", config, layout) if c.payload >= 256]
    assert {(c.kind, c.axis, c.times) for c in found} == {("all-reduce", "data", 1)}
    padded = sum(leaf.elements for leaf in leaves(config.model))
    assert sum(c.payload for c in found) == pytest.approx(4 * padded, rel=1e-3)


@pytest.mark.slow
def test_no_weight_is_copied_in_float32():
    config = small(unroll=LAYERS)
    assert copies_of_weights(step("h100", config).kernels, config.model) == []


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_evaluation_multiplies_narrow_numbers(gpu):
    config = for_gpu(small(), find_gpu(gpu))
    assert wide_products(compiler(gpu, ONE).evaluation(config).kernels) == []


@pytest.mark.slow
def test_a_float32_model_is_compiled_as_such_and_no_fault():
    program = step("h100", small(dtype="float32"))
    assert wide_products(program.kernels) != []
    card = card_of(find_target(find_gpu("h100")))
    said = findings(program.kernels, [], card, small(dtype="float32"), MICRO_STEPS)
    assert not any("float32" in sentence for sentence in said)


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_a_step_of_gpt2_is_as_good_as_it_has_been(gpu):
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
    assert sum(share.bytes for share in shares.values()) / tokens < 3.65e6
    assert shares[REST].bytes / tokens < 1.85e6
    if gpu == "h100":
        assert roofline_seconds(found, card) < 0.72

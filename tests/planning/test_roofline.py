"""Bytes, FLOPs and times of small programs whose figures are known by hand."""

import pytest

from gptjax.config import Config, ModelConfig
from gptjax.planning.findings import findings
from gptjax.planning.kernels import ATTENTION, COLLECTIVES, FLOAT32, NARROW, REST, TF32, kernels
from gptjax.planning.layout import Layout
from gptjax.planning.module import read_module
from gptjax.planning.overlap import crossings
from gptjax.planning.roofline import Card, by_class, roofline_seconds
from gptjax.planning.schedule import Links

CARD = Card(bandwidth=1e9, peaks={"bfloat16": 8e9, "tf32": 4e9, "float32": 2e9})


def program(entry: str, *computations: str) -> str:
    """A module whose other computations are given as `name: instructions`."""
    parts = [part.partition(": ") for part in computations]
    bodies = "".join(f"%{name} (p: f32[]) -> f32[] {{\n{lines}\n}}\n\n" for name, _, lines in parts)
    return f"HloModule m\n\n{bodies}ENTRY %main (p: f32[]) -> f32[] {{\n{entry}\n}}\n"


def fused(body: str, operands: str, result: str) -> str:
    """A program of one fusion; `operands` are parameters of the program as `name shape` lines."""
    given = [line.split(" ", 1) for line in operands.splitlines()]
    parameters = "\n".join(f"  %{n} = {shape} parameter({i})" for i, (n, shape) in enumerate(given))
    names = ", ".join(f"%{name}" for name, _ in given)
    call = f"  ROOT %f = {result} fusion({names}), kind=kLoop, calls=%body"
    return program(f"{parameters}\n{call}", f"body: {body}")


def moved(hlo: str) -> tuple[int, int]:
    (kernel,) = kernels(hlo)
    return kernel.read, kernel.written


X = "  %x = f32[100,40]{1,0} parameter(0)\n"


@pytest.mark.parametrize(
    ("body", "operands", "result", "read", "written"),
    [
        # an elementwise operation reads and writes all of it
        (X + "  ROOT %y = f32[100,40]{1,0} exponential(%x)", "a f32[100,40]{1,0}",
         "f32[100,40]{1,0}", 16_000, 16_000),
        # twice the same operand is read once
        (X + "  ROOT %y = f32[100,40]{1,0} multiply(%x, %x)", "a f32[100,40]{1,0}",
         "f32[100,40]{1,0}", 16_000, 16_000),
        # a reduction needs its whole operand and writes a hundredth of it
        (X + "  %z = f32[] constant(0)\n"
         "  ROOT %y = f32[40]{0} reduce(%x, %z), dimensions={0}, to_apply=%sum",
         "a f32[100,40]{1,0}", "f32[40]{0}", 16_000, 160),
        # only the slice is read, also through an elementwise operation
        (X + "  %e = f32[100,40]{1,0} negate(%x)\n"
         "  ROOT %y = f32[2,40]{1,0} slice(%e), slice={[3:5], [0:40]}",
         "a f32[100,40]{1,0}", "f32[2,40]{1,0}", 320, 320),
        # the row that a loop reads of a stack, at a place that is an operand
        (X + "  %i = s32[] parameter(1)\n  %z = s32[] constant(0)\n"
         "  ROOT %y = f32[1,40]{1,0} dynamic-slice(%x, %i, %z), dynamic_slice_sizes={1,40}",
         "a f32[100,40]{1,0}\nb s32[]", "f32[1,40]{1,0}", 160 + 4, 160),
        # a gather after an update reads the gathered elements, not the array: 5 floats, 5 places
        ("  %x = f32[5,40]{1,0} parameter(0)\n  %i = s32[5,2]{1,0} parameter(1)\n"
         "  %m = f32[] constant(0)\n  %pad = f32[5,3]{1,0} broadcast(%m), dimensions={}\n"
         "  %z = s32[] constant(0)\n  %at = s32[] constant(37)\n"
         "  %u = f32[5,40]{1,0} dynamic-update-slice(%x, %pad, %z, %at)\n"
         "  ROOT %y = f32[5,1]{1,0} gather(%u, %i), offset_dims={1}, slice_sizes={1,1}",
         "a f32[5,40]{1,0}\nb s32[5,2]{1,0}", "f32[5,1]{1,0}", 20 + 40, 20),
        # an update in place writes what it changes, and reads the array not at all
        (X + "  %v = f32[1,40]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"
         "  %z = s32[] constant(0)\n"
         "  ROOT %y = f32[100,40]{1,0} dynamic-update-slice(%x, %v, %i, %z)",
         "a f32[100,40]{1,0}\nb f32[1,40]{1,0}\nc s32[]", "f32[100,40]{1,0}", 160 + 4, 160),
        # two results are two writes; narrow elements count as narrow
        (X + "  %h = bf16[100,40]{1,0} convert(%x)\n  %n = f32[100,40]{1,0} negate(%x)\n"
         "  ROOT %t = (bf16[100,40]{1,0}, f32[100,40]{1,0}) tuple(%h, %n)",
         "a f32[100,40]{1,0}", "(bf16[100,40]{1,0}, f32[100,40]{1,0})", 16_000, 24_000),
        # a bias is read once, however often it is repeated
        (X + "  %b = f32[40]{0} parameter(1)\n"
         "  %r = f32[100,40]{1,0} broadcast(%b), dimensions={1}\n"
         "  ROOT %y = f32[100,40]{1,0} add(%x, %r)",
         "a f32[100,40]{1,0}\nb f32[40]{0}", "f32[100,40]{1,0}", 16_160, 16_000),
    ],
)  # fmt: skip
def test_a_fusion_is_charged_with_what_its_results_need(body, operands, result, read, written):
    hlo = fused(body, operands, result)
    assert moved(hlo) == (read, written)
    (kernel,) = kernels(hlo)
    assert kernel.flops == 0
    assert CARD.seconds(kernel) == pytest.approx((read + written) / 1e9)


def product(left: str, right: str, result: str, extra: str = "") -> str:
    config = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    config += '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}' + extra
    return program(
        f"  %a = {left}[10,30]{{1,0}} parameter(0)\n  %b = {right}[30,20]{{1,0}} parameter(1)\n"
        f"  ROOT %p = ({result}[10,20]{{1,0}}, s8[4096]{{0}}) custom-call(%a, %b), "
        f'custom_call_target="__cublas$lt$matmul", {config}}}}}'
    )


@pytest.mark.parametrize(
    ("left", "right", "extra", "kind", "seconds"),
    [
        ("bf16", "bf16", "", NARROW, 12_000 / 8e9),
        ("f32", "bf16", "", FLOAT32, 12_000 / 2e9),
        ("f32", "f32", "", FLOAT32, 12_000 / 2e9),
        ("f32", "f32", ',"precision_config":{"algorithm":"ALG_DOT_TF32_TF32_F32"}', TF32, 3e-6),
    ],
)
def test_a_product_counts_two_operations_a_pair_and_its_factors_decide(
    left, right, extra, kind, seconds
):
    (kernel,) = kernels(product(left, right, "f32", extra))
    widths = {"bf16": 2, "f32": 4}
    assert kernel.flops == 2 * 10 * 20 * 30
    assert kernel.read == 300 * widths[left] + 600 * widths[right]
    assert kernel.written == 10 * 20 * 4  # without cuBLAS' scratch space
    assert kernel.kind == kind
    assert CARD.seconds(kernel) == pytest.approx(max(seconds, kernel.bytes / 1e9))


def test_a_product_within_a_fusion_has_the_type_of_its_own_factors():
    body = (
        "  %x = f32[10,30]{1,0} parameter(0)\n  %w = f32[30,20]{1,0} parameter(1)\n"
        "  %h = bf16[10,30]{1,0} convert(%x)\n  %v = bf16[30,20]{1,0} convert(%w)\n"
        "  ROOT %p = f32[10,20]{1,0} dot(%h, %v), "
        "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    )
    hlo = fused(body, "a f32[10,30]{1,0}\nb f32[30,20]{1,0}", "f32[10,20]{1,0}")
    (kernel,) = kernels(hlo)
    assert (kernel.kind, kernel.flops, kernel.read) == (NARROW, 12_000, 4 * 900)


@pytest.mark.parametrize(("name", "products"), [("", 2), ("Backward", 5)])
def test_flash_attention_is_half_of_all_pairs_if_it_is_causal(name, products):
    q = "bf16[2,64,3,8]{3,2,1,0}"
    result = "(bf16[2,3,64,8]{3,1,2,0}, f32[2,3,64]{2,1,0}, u8[0]{0})"
    pairs = '"intermediate_tensor_shape": {"dimensions": ["2", "3", "64", "64"]}'
    for mask, share in (("CAUSAL", 0.5), ("NO_MASK", 1)):
        (kernel,) = kernels(
            program(
                f"  %q = {q} parameter(0)\n"
                f"  ROOT %a = {result} custom-call(%q, %q, %q), "
                f'custom_call_target="__cudnn$fmhaSoftmax{name}", '
                f'backend_config={{{pairs}, "mask_type": "{mask}"}}'
            )
        )
        assert kernel.flops == products * 2 * 2 * 3 * 64 * 64 * 8 * share
        assert (kernel.kind, kernel.dtype, kernel.is_backward) == (
            ATTENTION, "bfloat16", bool(name),
        )  # fmt: skip
        assert kernel.written == 2 * (2 * 3 * 64 * 8) + 4 * (2 * 3 * 64)


@pytest.mark.parametrize(("name", "products"), [("forward", 2), ("backward", 7)])
def test_our_own_flash_attention_counts_what_its_kernels_multiply(name, products):
    """A Pallas kernel: the backward one forms scores and their gradients twice, to sum them up."""
    q, rest = "bf16[2,64,3,8]{3,2,1,0}", "f32[2,3,64]{2,1,0}"
    source = f"transpose(jvp(GPT))/h/attn/flash_attention_{name}/pallas_call"
    (kernel,) = kernels(
        program(
            f"  %q = {q} parameter(0)\n  %s = {rest} parameter(1)\n"
            f"  ROOT %pallas_call.1 = ({q}, {rest}) custom-call(%q, %q, %q, %s), "
            f'custom_call_target="__gpu$xla.gpu.triton", metadata={{op_name="{source}"}}'
        )
    )
    assert kernel.flops == products * 2 * 2 * 3 * 64 * 64 * 8 / 2
    assert (kernel.kind, kernel.dtype) == (ATTENTION, "bfloat16")
    assert (kernel.operation, kernel.is_backward) == (
        f"flash_attention_{name}", name == "backward",
    )  # fmt: skip
    assert kernel.read == 3 * 2 * (2 * 64 * 3 * 8) + 4 * (2 * 3 * 64)


@pytest.mark.parametrize("runs", [1, 2])
def test_a_kernel_that_runs_twice_is_told_and_its_gradient_is_no_second_run(runs):
    q = "bf16[2,64,3,8]{3,2,1,0}"
    names = ["forward"] * runs + ["backward"]
    calls = "".join(
        f"  %k{n} = {q} custom-call(%q, %q, %q), "
        f'custom_call_target="__gpu$xla.gpu.triton", '
        f'metadata={{op_name="h/attn/flash_attention_{name}/pallas_call"}}\n'
        for n, name in enumerate(names)
    )
    found = kernels(program(f"  %q = {q} parameter(0)\n{calls}  ROOT %n = {q} negate(%q)"))
    config = Config(model=ModelConfig(n_layer=1, n_head=3, n_embd=24, n_vocab=100))
    said = findings(found, [], CARD, config, micro_steps=1)
    assert [sentence.partition(" times")[0] for sentence in said] == (
        ["flash attention's forward kernel runs 2"] if runs == 2 else []
    )


LOOP = 'backend_config={"known_trip_count":{"n":"4"}}'
GATED = program(
    f"  %x = f32[1000]{{0}} parameter(0)\n"
    f"  ROOT %l = f32[1000]{{0}} while(%x), condition=%going, body=%step, {LOOP}",
    "last:   %x = f32[1000]{0} parameter(0)\n"
    "  %r = f32[1000]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum\n"
    "  ROOT %c = f32[1000]{0} copy(%r)",
    "others:   %x = f32[1000]{0} parameter(0)\n  ROOT %n = f32[1000]{0} negate(%x)",
    "step:   %x = f32[1000]{0} parameter(0)\n  %e = f32[1000]{0} exponential(%x)\n"
    "  %p = pred[] constant(true)\n"
    "  ROOT %c = f32[1000]{0} conditional(%p, %e, %e), "
    "true_computation=%last, false_computation=%others",
    "going:   %x = f32[1000]{0} parameter(0)\n  ROOT %p = pred[] constant(true)",
)


def test_what_only_the_last_micro_step_does_counts_once():
    times = {kernel.name: kernel.times for kernel in kernels(GATED)}
    assert times == {"e": 4, "r": 1, "c": 1, "n": 3}


def test_the_costlier_branch_stands_for_a_condition_that_moves_nothing():
    hlo = GATED.replace(" all-reduce(", " negate(")
    assert {kernel.name for kernel in kernels(hlo)} == {"e", "r", "c"}
    assert all(kernel.times == 4 for kernel in kernels(hlo))


COUNTED = program(
    "  %x = f32[1000]{0} parameter(0)\n  %zero = s32[] constant(START)\n"
    "  %begin = s32[] copy(%zero)\n  %t = (f32[1000]{0}, s32[]) tuple(%x, %begin)\n"
    "  ROOT %l = (f32[1000]{0}, s32[]) while(%t), condition=%going, body=%step, "
    'backend_config={"known_induction_variable":{"tuple_index":"1"}}',
    "more:   %i = s32[] parameter(0)\n  %one = s32[] constant(STEP)\n"
    "  ROOT %j = s32[] add(%i, %one)",
    "less:   %i = s32[] parameter(0)\n  %n = s32[] constant(9)\n"
    "  ROOT %p = pred[] compare(%i, %n), direction=LT",
    "step:   %s = (f32[1000]{0}, s32[]) parameter(0)\n"
    "  %x = f32[1000]{0} get-tuple-element(%s), index=0\n"
    "  %i = s32[] get-tuple-element(%s), index=1\n  %c = s32[] copy(%i)\n"
    "  %j = s32[] fusion(%c), kind=kLoop, calls=%more\n  %e = f32[1000]{0} exponential(%x)\n"
    "  ROOT %t = (f32[1000]{0}, s32[]) tuple(%e, %j)",
    "going:   %s = (f32[1000]{0}, s32[]) parameter(0)\n"
    "  %i = s32[] get-tuple-element(%s), index=1\n"
    "  ROOT %p = pred[] fusion(%i), kind=kLoop, calls=%less",
)


@pytest.mark.parametrize(
    ("start", "step", "trips"), [("0", "1", 9), ("1", "1", 8), ("0", "2", 5), ("1", "2", 4)]
)
def test_a_loop_without_a_note_is_counted_by_its_own_counter(start, step, trips):
    hlo = COUNTED.replace("START", start).replace("STEP", step)
    assert {k.name: k.times for k in kernels(hlo)}["e"] == trips


def test_a_loop_whose_end_depends_on_data_counts_once():
    hlo = COUNTED.replace("constant(9)", "parameter(0)").replace("START", "0").replace("STEP", "1")
    assert {k.name: k.times for k in kernels(hlo)}["e"] == 1


def test_classes_add_up_to_the_roofline():
    found = kernels(GATED)
    shares = by_class(found, CARD)
    assert set(shares) == {COLLECTIVES, REST}
    assert shares[COLLECTIVES].seconds == 0  # the links' account
    assert shares[REST].launches == 4 + 1 + 3
    assert shares[REST].bytes == 8 * 8000
    assert roofline_seconds(found, CARD) == pytest.approx(8 * 8000 / 1e9)


LAYOUT, LINKS = Layout(data=2), Links(bus=1e9, network=1e9)


def schedule_of(*between: str) -> str:
    """A gradient of 500,000 floats crosses while kernels of 8 bytes an element run."""
    kernel = "  %k{n} = f32[125000]{{0}} negate(%x)"
    own = "\n".join(kernel.format(n=n) for n in between)
    return program(
        "  %x = f32[125000]{0} parameter(0)\n  %g = f32[500000]{0} parameter(1)\n"
        "  %s = f32[500000]{0} all-reduce-start(%g), replica_groups={{0,1}}, to_apply=%sum\n"
        f"{own}\n  ROOT %d = f32[500000]{{0}} all-reduce-done(%s)"
    )


@pytest.mark.parametrize(("kernels_between", "exposed"), [("", 2e-3), ("1", 1e-3), ("123", 0)])
def test_kernels_between_start_and_done_hide_a_collective(kernels_between, exposed):
    module = read_module(schedule_of(*kernels_between))
    (found,) = crossings(module, kernels(module), CARD, LAYOUT, LINKS)
    assert (found.kind, found.axis, found.payload, found.times) == ("all-reduce", "data", 2e6, 1)
    assert found.seconds == pytest.approx(2e-3)  # 2 (n - 1) / n of two million bytes
    assert found.exposed == pytest.approx(exposed)
    assert not found.is_looped


def test_a_collective_without_a_start_is_waited_for():
    module = read_module(GATED)
    (found,) = crossings(module, kernels(module), CARD, LAYOUT, LINKS)
    assert (found.payload, found.times, found.exposed) == (4000, 1, found.seconds)


def test_two_collectives_share_the_links():
    hlo = schedule_of("1", "2", "3").replace(
        "  %k1", "  %s2 = f32[500000]{0} all-reduce-start(%g), replica_groups={{0,1}}\n  %k1"
    )
    hlo = hlo.replace("  ROOT %d", "  %d2 = f32[500000]{0} all-reduce-done(%s2)\n  ROOT %d")
    module = read_module(hlo)
    found = crossings(module, kernels(module), CARD, LAYOUT, LINKS)
    assert sum(c.exposed for c in found) == pytest.approx(4e-3 - 3e-3)


def test_gathered_and_scattered_bytes_are_those_of_the_whole():
    hlo = program(
        "  %x = bf16[50]{0} parameter(0)\n  %g = f32[400]{0} parameter(1)\n"
        "  %a = (bf16[50]{0}, bf16[400]{0}) all-gather-start(%x), "
        "replica_groups=[1,8]<=[8], dimensions={0}\n"
        "  %b = bf16[400]{0} all-gather-done(%a)\n"
        "  ROOT %r = f32[50]{0} reduce-scatter(%g), replica_groups=[1,8]<=[8], dimensions={0}"
    )
    module = read_module(hlo)
    found = crossings(module, kernels(module), CARD, Layout(fsdp=8), LINKS)
    assert [(c.kind, c.axis, c.payload) for c in found] == [
        ("all-gather", "fsdp", 800), ("reduce-scatter", "fsdp", 1600),
    ]  # fmt: skip
    assert [c.seconds for c in found] == pytest.approx([800 * 7 / 8 / 1e9, 1600 * 7 / 8 / 1e9])

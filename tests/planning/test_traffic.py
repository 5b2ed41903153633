"""Bytes between devices by hand, and the time they take on slow and fast links."""

import dataclasses

import pytest

from gptjax.config import Config, ModelConfig, TrainConfig
from gptjax.planning.compiled import compare_traffic, compile_step
from gptjax.planning.gpus import GPUS
from gptjax.planning.layout import ROWS, Layout
from gptjax.planning.schedule import Links, on_other_numbers, schedule
from gptjax.planning.traffic import HIDDEN_FSDP, traffic, transfers

PARAMETERS = 124_439_808 + 47 * 768  # with the rows that pad the vocabulary to 50,304
GPT2 = Config(
    model=ModelConfig(n_vocab=50257, remat="dots"),
    train=TrainConfig(batch_tokens=2**19, micro_batch=16),
)
SMALL = Config(
    model=ModelConfig(
        n_layer=3, n_head=8, n_embd=128, n_ctx=64, n_vocab=300, dtype="bfloat16", remat="dots"
    ),
    train=TrainConfig(batch_tokens=64 * 2 * 3 * 4, micro_batch=2),  # 3 micro-steps on 4 groups
)
ROWS_OF_SMALL = 3 * 12 * 128**2, 384 * 128 + 64 * 128  # matrices of blocks, tables
VECTORS = 3 * (4 * 128 + 3 * 128 + 128 + 4 * 128 + 128) + 2 * 128
GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"


def test_replicas_exchange_every_gradient_once_a_step():
    moved = traffic(GPT2, Layout(8))
    assert set(moved) == {("data", REDUCE)}
    assert moved["data", REDUCE].payload == 4 * PARAMETERS
    assert moved["data", REDUCE].sent == 4 * PARAMETERS * 2 * 7 / 8
    half = dataclasses.replace(GPT2.train, wire_dtype="bfloat16")
    moved = traffic(dataclasses.replace(GPT2, train=half), Layout(8))
    assert moved["data", REDUCE].payload == 2 * PARAMETERS


def test_one_device_sends_nothing():
    assert traffic(GPT2, Layout()) == {}


def test_divided_weights_are_gathered_in_their_type_and_scattered_in_float32():
    blocks, tables = ROWS_OF_SMALL
    moved = traffic(SMALL, Layout(data=2, fsdp=2))
    assert moved["fsdp", GATHER].payload == 3 * 2 * 2 * blocks + 2 * tables
    assert moved["fsdp", GATHER].sent == moved["fsdp", GATHER].payload / 2
    assert moved["fsdp", SCATTER].payload == 3 * 4 * (blocks + tables)
    assert moved["data", REDUCE].payload == 4 * (blocks + tables) // 2
    assert moved[ROWS, REDUCE].payload == 4 * VECTORS
    assert len(moved) == 4


@pytest.mark.parametrize(
    ("remat", "sums", "gathers"), [("none", 4, 1), ("dots", 4, 2), ("block", 5, 2), ("full", 5, 2)]
)
def test_heads_on_several_devices_add_activations_up(remat, sums, gathers):
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, remat=remat))
    moved = traffic(config, Layout(data=4, tensor=2))
    tokens = 2 * 64
    once = 2 * (sums * 3 + 1) * tokens * 128 + 4 * tokens * 128  # layers and head, embedding
    small = 4 * (3 * tokens + 3 * 3 * 128)  # softmax, gradient of c_attn's bias
    assert moved["tensor", REDUCE].payload == 3 * (once + small)
    qkv = 3 * 128 * 3 * 128
    assert moved["tensor", GATHER].payload == 3 * gathers * 2 * qkv
    assert moved["tensor", SCATTER].payload == 3 * 4 * qkv
    halves = sum(ROWS_OF_SMALL) // 2 + 64 * 128 // 2 + VECTORS - 3 * 4 * 128 // 2
    assert moved["data", REDUCE].payload == 4 * halves  # positions and most biases are whole


@pytest.mark.parametrize(
    ("gigabytes", "wire", "milliseconds"),
    [
        (4, "float32", 217.83), (4, "bfloat16", 108.92), (12, "float32", 72.61),
        (12, "bfloat16", 36.31), (300, "float32", 2.904), (300, "bfloat16", 1.452),
    ],
)  # fmt: skip
def test_a_slow_bus_takes_its_share_of_a_step(gigabytes, wire, milliseconds):
    """2^19 tokens on eight RTX 4090: bytes x 2 x 7/8 over the bandwidth, by hand."""
    train = dataclasses.replace(GPT2.train, wire_dtype=wire)
    config = dataclasses.replace(GPT2, train=train)
    links = Links(gigabytes * 1e9, 1e9)
    found = schedule(config, Layout(8), GPUS["rtx4090"], links, mfu=0.5)
    compute = 2**19 * 797.97e6 / (8 * 0.5 * 165.2e12)
    assert found.compute == pytest.approx(compute, rel=1e-4)
    assert found.compute == pytest.approx(0.6332, abs=1e-4)
    assert sum(found.sync.values()) == pytest.approx(milliseconds / 1000, rel=3e-4)
    expected = compute / (compute + milliseconds / 1000)
    assert found.efficiency == pytest.approx(expected, rel=1e-4)
    assert found.limit == "chip"


def test_efficiencies_that_eight_slow_cards_reach():
    rates = (4, 12, 300)
    found = [
        schedule(GPT2, Layout(8), GPUS["rtx4090"], Links(rate * 1e9, 1e9), 0.5).efficiency
        for rate in rates
    ]
    assert found == pytest.approx([0.744, 0.897, 0.995], abs=1e-3)


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [
        pytest.param((2, 2, 2), "block", marks=pytest.mark.slow),
        pytest.param((8, 1, 1), "dots", marks=pytest.mark.slow),
        pytest.param((2, 4, 1), "none", marks=pytest.mark.slow),
        pytest.param((4, 1, 2), "none", marks=pytest.mark.slow),
    ],
)
def test_the_compiled_program_sends_what_was_planned(mesh, remat):
    layout = Layout(*mesh)
    model = dataclasses.replace(SMALL.model, dtype="float32", attention="xla", remat=remat)
    batch_tokens = 3 * layout.groups * 2 * 64
    train = dataclasses.replace(SMALL.train, batch_tokens=batch_tokens, loss_chunk_tokens=64)
    config = Config(model=model, train=train)
    hlo = compile_step(config, layout).as_text()
    found = compare_traffic(config, layout, hlo)
    assert set(found) == set(traffic(config, layout))
    for key, (planned, actual) in found.items():
        assert planned == pytest.approx(actual, rel=1e-3), key


def test_fsdp_s_traffic_runs_beside_arithmetic_and_gradients_of_replicas_wait():
    gpu, links = GPUS["h100"], Links(360e9, 40e9)
    replicas = schedule(GPT2, Layout(8), gpu, links, 0.36)
    assert replicas.exposed == sum(replicas.sync.values())
    assert replicas.hidden == 0
    divided = schedule(GPT2, Layout(1, 8), gpu, links, 0.36)
    moved = transfers(GPT2, Layout(1, 8))
    often = sum(t.sent for t in moved if t.micro_steps) / 360e9
    assert divided.hidden == pytest.approx(HIDDEN_FSDP * often)
    assert divided.exposed + divided.hidden == pytest.approx(sum(divided.sync.values()))
    assert divided.step == divided.compute + divided.exposed
    assert divided.worst_efficiency < divided.efficiency < 1


def test_no_more_is_hidden_than_there_is_arithmetic():
    gpu, links = GPUS["h100"], Links(bus=1e9, network=1e9)
    found = schedule(GPT2, Layout(1, 8), gpu, links, 0.36)
    assert found.hidden == pytest.approx(found.compute)
    assert found.limit == "network"
    steps = GPT2.train.max_steps
    assert found.seconds == pytest.approx(steps * found.step)
    assert found.most_seconds == pytest.approx(steps * (found.step + found.hidden))


def test_a_ring_that_leaves_the_node_goes_through_its_network():
    links = Links(bus=300e9, network=20e9)
    assert links.rate(Layout(8), "data") == 300e9
    assert links.rate(Layout(16), "data") == 8 * 20e9  # all eight of a node bring their part
    assert links.rate(Layout(2, 8), "data") == 20e9
    assert links.rate(Layout(2, 8), "fsdp") == 300e9
    assert Links(300e9, 100e9).rate(Layout(16), "data") == 300e9


def test_hours_and_tokens_count_the_ramp():
    gpu, links = GPUS["a100"], Links(1e15, 1e15)
    train = dataclasses.replace(
        GPT2.train, ramp_from_tokens=2**18, ramp_steps=1000, max_steps=2000, micro_batch=16
    )
    flat = schedule(GPT2, Layout(8), gpu, links, 0.4)
    ramped = schedule(dataclasses.replace(GPT2, train=train), Layout(8), gpu, links, 0.4)
    assert flat.tokens == GPT2.train.max_steps * 2**19
    assert ramped.tokens == 1000 * 2**18 + 1000 * 2**19
    assert ramped.seconds == pytest.approx(1500 * ramped.compute, rel=1e-3)
    assert flat.hours == pytest.approx(flat.tokens / (8 * 0.4 * 312e12 / 797.97e6) / 3600, rel=1e-3)


def test_more_nodes_keep_the_batch_until_rows_run_out():
    gpu = GPUS["h100"]
    links = Links(gpu.bus, gpu.network)
    found = on_other_numbers(GPT2, Layout(8), gpu, links, 0.4)
    assert [scale.layout.nodes for scale in found] == [2**k for k in range(7)]
    assert found[-1].layout.gpus == GPT2.batch_rows
    part = on_other_numbers(GPT2, Layout(2, 1, 2), gpu, links, 0.4)
    assert [scale.layout.gpus for scale in part] == [2**k for k in range(1, 11)]
    sixes = on_other_numbers(GPT2, Layout(6, gpus_per_node=6), gpu, links, 0.4)
    assert [scale.schedule for scale in sixes] == [None] * 7
    efficiencies = [scale.schedule.efficiency for scale in found if scale.schedule]
    assert efficiencies == sorted(efficiencies, reverse=True)
    limits = [scale.schedule.limit for scale in found if scale.schedule]
    assert limits[0] == "chip"
    assert limits[-1] == "network"

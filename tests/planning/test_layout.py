"""Axes fill nodes from the innermost on; an impossible mesh is refused in words."""

import dataclasses

import pytest

from gptjax.base.errors import ConfigError
from gptjax.config import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.config.presets import load_config
from gptjax.planning.layout import ROWS, Layout, lay_out, with_vocabulary

GPT2 = Config(model=ModelConfig(n_vocab=50257), train=TrainConfig(micro_batch="auto"))


@pytest.mark.parametrize(
    ("layout", "within"),
    [
        (Layout(4, 1, 1), {"data": 4, "fsdp": 1, "tensor": 1, ROWS: 4}),
        (Layout(16, 1, 1), {"data": 8, "fsdp": 1, "tensor": 1, ROWS: 8}),
        (Layout(4, 4, 2), {"data": 1, "fsdp": 4, "tensor": 2, ROWS: 4}),
        (Layout(4, 2, 2), {"data": 2, "fsdp": 2, "tensor": 2, ROWS: 4}),
        (Layout(8, 16, 8), {"data": 1, "fsdp": 1, "tensor": 8, ROWS: 1}),
    ],
)
def test_axes_fill_nodes_from_the_innermost_on(layout, within):
    assert {axis: layout.within_node(axis) for axis in within} == within


def test_data_is_what_the_other_axes_leave():
    config = dataclasses.replace(GPT2, mesh=MeshConfig(fsdp=4, tensor=2))
    assert lay_out(config, 16) == Layout(2, 4, 2, 8)
    assert lay_out(config, 16).nodes == 2
    assert str(lay_out(config, 16)) == "data 2 x fsdp 4 x tensor 2"


def problems_of(config: Config, gpus: int, per_node: int = 8) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        lay_out(config, gpus, per_node)
    return caught.value.problems


@pytest.mark.parametrize(
    ("mesh", "gpus", "problem"),
    [
        ({}, 0, "--gpus must be at least 1, not 0"),
        ({"fsdp": 8}, 12, "mesh.fsdp 8 x mesh.tensor 1 does not go into 12 GPUs: try --gpus 8"),
        (
            {"data": 2, "fsdp": 2}, 8,
            "mesh.data 2 x mesh.fsdp 2 x mesh.tensor 1 does not go into 8 GPUs: try --gpus 4",
        ),
        (
            {}, 3,
            "train.batch_tokens 524288 is 512 sequences of 1024 tokens, which do not divide among "
            "3 groups of devices (mesh.data x mesh.fsdp): try 525312",
        ),
        (
            {"tensor": 16}, 16,
            "mesh.tensor 16 does not divide model.n_head 12: try --mesh.tensor 12",
        ),
    ],
)  # fmt: skip
def test_a_mesh_that_cannot_be_is_told_with_one_that_can(mesh, gpus, problem):
    assert problem in problems_of(dataclasses.replace(GPT2, mesh=MeshConfig(**mesh)), gpus)


def test_heads_of_gpt2_xl_are_not_divided_by_two():
    config = load_config("gpt2_1558m")
    config = dataclasses.replace(config, mesh=MeshConfig(tensor=2))
    assert problems_of(config, 8) == [
        "mesh.tensor 2 does not divide model.n_head 25: try --mesh.tensor 1"
    ]


@pytest.mark.parametrize("per_node", [2, 6])
def test_tensor_stays_within_a_node(per_node):
    config = dataclasses.replace(GPT2, mesh=MeshConfig(tensor=4))
    assert problems_of(config, 8, per_node) == [
        f"mesh.tensor 4 does not divide the {per_node} GPUs of a node: devices along it must "
        "share a node"
    ]


def test_a_vocabulary_is_read_off_the_tokenizer_s_name():
    sizes = {}
    for tokenizer in ("gpt2", "bytes", "bpe:4096"):
        data = dataclasses.replace(GPT2.data, tokenizer=tokenizer)
        config = dataclasses.replace(Config(), data=data)
        sizes[tokenizer] = with_vocabulary(config).model.n_vocab
    assert sizes == {"gpt2": 50257, "bytes": 257, "bpe:4096": 4096}
    assert with_vocabulary(GPT2) == GPT2
    with pytest.raises(ConfigError, match=r"add --model\.n-vocab N"):
        with_vocabulary(Config())

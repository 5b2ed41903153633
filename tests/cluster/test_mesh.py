"""Batches are cut and placed as promised: arithmetic of the layout, rows on their devices."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from gptjax.base.errors import ConfigError, UserError
from gptjax.cluster.mesh import batch_layout, make_mesh, put_rows, replicated
from gptjax.config import Config, ModelConfig, TrainConfig
from gptjax.config.validation import validate


def config(rows: int, micro_batch: int, context: int = 16) -> Config:
    return Config(
        model=ModelConfig(n_ctx=context),
        train=TrainConfig(batch_tokens=rows * context, micro_batch=micro_batch),
    )


@pytest.mark.parametrize(
    ("rows", "micro_batch", "n_devices", "micro_steps", "rows_per_device"),
    [
        (8, 8, 1, 1, 8),
        (8, 4, 1, 2, 4),
        (32, 4, 8, 1, 4),
        (64, 4, 8, 2, 4),
        (512, 16, 1, 32, 16),
        (512, 16, 8, 4, 16),
        (16, 16, 8, 1, 2),  # lowered: 2 rows are left for each device
        (24, 8, 4, 1, 6),
        (48, 8, 4, 2, 6),  # lowered: of 12 rows a device, 8 at once leave a rest, 6 do not
        (16, 16, 16, 1, 1),
        (56, 4, 8, 7, 1),  # lowered: 7 rows a device divide by nothing below 4 but 1
    ],
)
def test_micro_steps_follow_from_the_batch(
    rows, micro_batch, n_devices, micro_steps, rows_per_device
):
    layout = batch_layout(config(rows, micro_batch), n_devices, micro_batch)
    assert (layout.micro_steps, layout.micro_batch) == (micro_steps, rows_per_device)
    assert (layout.row_groups, layout.context) == (n_devices, 16)


def test_a_layout_covers_the_batch_with_the_largest_micro_batch_that_divides_it():
    for rows in range(1, 65):
        for n_devices in (n for n in range(1, 9) if rows % n == 0):
            for limit in (1, 2, 3, 5, 8, 64):
                layout = batch_layout(config(rows, limit), n_devices, limit)
                per_device = rows // n_devices
                fitting = [m for m in range(1, limit + 1) if per_device % m == 0]
                assert layout.micro_batch == max(fitting)
                assert layout.micro_steps * layout.micro_batch == per_device


def test_the_layout_says_its_product():
    text = str(batch_layout(config(64, 4), 8, 4))
    assert text == ("2 micro-steps x 8 devices x 4 sequences x 16 tokens = 1,024 tokens a step")


def test_rows_that_do_not_divide_among_devices_are_refused_with_the_numbers():
    with pytest.raises(ConfigError) as caught:
        batch_layout(config(20, 4), 8, 4)
    assert "train.batch_tokens 320 is 20 sequences of 16 tokens" in str(caught.value)
    assert "among 8 groups of devices (mesh.data x mesh.fsdp): try 384" in str(caught.value)


@pytest.mark.parametrize(("rows", "micro_batch", "n_devices"), [(20, 4, 8), (8, 4, 3), (16, 16, 6)])
def test_the_batch_that_the_refusal_proposes_is_accepted(rows, micro_batch, n_devices):
    refused = config(rows, micro_batch)
    validate(refused)
    with pytest.raises(ConfigError) as caught:
        batch_layout(refused, n_devices, 4)
    proposed = int(re.search(r"try (\d+)", str(caught.value))[1])
    train = dataclasses.replace(refused.train, batch_tokens=proposed)
    accepted = dataclasses.replace(refused, train=train)
    validate(accepted)
    assert batch_layout(accepted, n_devices, 4).row_groups == n_devices


@pytest.mark.parametrize(("asked", "got"), [(None, 8), (8, 8), (2, 2), (1, 1)])
def test_the_mesh_has_automatic_axes_over_the_first_devices(asked, got):
    mesh = make_mesh(asked)
    assert dict(mesh.shape) == {"data": got, "fsdp": 1, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert list(mesh.devices.flat) == jax.devices()[:got]


def test_more_devices_than_there_are_make_no_mesh():
    with pytest.raises(UserError, match="a mesh of 9 devices needs more than the 8 that jax has"):
        make_mesh(9)


@pytest.mark.parametrize(("axis", "shape"), [(0, (16, 3)), (1, (4, 16, 3)), (1, (1, 8, 2))])
def test_every_device_gets_its_own_contiguous_rows(axis, shape):
    mesh = make_mesh()
    host = {"tokens": np.arange(np.prod(shape), dtype=np.int32).reshape(shape)}
    placed = put_rows(mesh, host, axis)["tokens"]
    assert (placed.shape, placed.dtype) == (shape, np.int32)
    assert placed.sharding.spec == PartitionSpec(*[None] * axis, ("data",))
    parts = np.split(host["tokens"], 8, axis=axis)
    shards = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    assert len(shards) == 8
    for device, part in zip(mesh.devices.flat, parts, strict=True):
        np.testing.assert_array_equal(shards[device], part)


def test_a_replicated_array_is_whole_on_every_device():
    placed = jax.device_put(np.arange(6.0), replicated(make_mesh()))
    assert len(placed.addressable_shards) == 8
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6.0))

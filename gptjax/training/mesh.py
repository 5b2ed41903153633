"""Devices as a mesh with one axis, `data`, and where a run's arrays lie on it.

Parameters and optimizer state are on every device; each device has its own rows of a batch.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.config import Config
from gptjax.errors import ConfigError
from gptjax.ramp import batch_ramp

AXIS = "data"


def make_mesh(n_devices: int | None = None) -> Mesh:
    """A mesh over all devices, or over the first `n_devices`."""
    devices = jax.devices()[:n_devices]
    # make_mesh gives Explicit axes by default, which shard_map's automatic parts refuse
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_rows(mesh: Mesh, batch: Any, axis: int) -> Any:
    """Start copying this process's part of a batch to its devices, split along `axis`.

    The result is the global batch of all processes; process order is row order.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of an update are cut: A micro-steps of `micro_batch` rows on every device."""

    micro_steps: int
    micro_batch: int
    n_devices: int
    context: int

    def __str__(self) -> str:
        tokens = self.micro_steps * self.micro_batch * self.n_devices * self.context
        return (
            f"{self.micro_steps} micro-steps x {self.n_devices} devices x {self.micro_batch} "
            f"sequences x {self.context} tokens = {tokens:,} tokens an update"
        )


def rows_per_device(config: Config, n_devices: int) -> int:
    """Rows of the smallest update that each device has to do; they are cut into micro-batches.

    Raises `ConfigError` if the rows do not divide among the devices.
    """
    rows = batch_ramp(config).first
    if rows % n_devices:
        name = "batch_tokens" if config.train.ramp_from_tokens is None else "ramp_from_tokens"
        micro_batch = config.train.micro_batch
        fitting = math.lcm(1 if micro_batch == "auto" else micro_batch, n_devices)
        raise ConfigError(
            [
                f"train.{name} {rows * config.context} is {rows} sequences of {config.context} "
                f"tokens, which do not divide among {n_devices} devices: try "
                f"{math.ceil(rows / fitting) * fitting * config.context}"
            ]
        )
    return rows // n_devices


def batch_layout(config: Config, n_devices: int, micro_batch: int) -> BatchLayout:
    """Derive the micro-steps from the batch; they are never set by hand.

    Where there are so many devices that the rows do not fill `micro_batch` on each, the largest
    smaller one that divides them is taken.
    """
    per_device = rows_per_device(config, n_devices)
    largest = min(micro_batch, per_device)
    micro = next(m for m in range(largest, 0, -1) if per_device % m == 0)
    return BatchLayout(config.batch_rows // n_devices // micro, micro, n_devices, config.context)


def abstract_batch(mesh: Mesh, layout: BatchLayout, updates: tuple[int, ...] = ()) -> Any:
    """Shapes, types and placement of one update's batch, for compiling before there is data.

    `updates` is (K,) where one call does K of them.
    """
    rows = (*updates, layout.micro_steps, layout.micro_batch * layout.n_devices)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * len(updates), None, AXIS))
    return {
        "tokens": jax.ShapeDtypeStruct((*rows, layout.context + 1), "int32", sharding=sharding),
        "weights": jax.ShapeDtypeStruct((*rows, layout.context), "float32", sharding=sharding),
    }

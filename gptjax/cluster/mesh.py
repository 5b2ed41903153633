"""The mesh of devices, with axes `data`, `fsdp` and `tensor`, and the placement of arrays on it.

Each position along `data` has a whole model, which devices along `fsdp` and `tensor` divide.
Devices along `data` and `fsdp` also divide the rows of a batch; those along `tensor` share rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.tree import Tree, leaf_names, named_leaves
from gptjax.config import Config, MeshConfig
from gptjax.config.batches import batch_schedule, rows_problem
from gptjax.model.places import FSDP, TENSOR, UNSHARDED, ModelSharding

DATA = "data"


def make_mesh(devices: int | Sequence[Any] | None = None, split: ModelSharding = UNSHARDED) -> Mesh:
    """A mesh of all devices, of the first `devices`, or of a list; neighbours share a model.

    Raises `UserError` if there are fewer than `devices`.
    """
    if devices is None or isinstance(devices, int):
        found = jax.devices()
        if devices is not None and devices > len(found):
            raise UserError(
                f"a mesh of {devices} devices needs more than the {len(found)} that jax has found "
                "here: JAX_NUM_CPU_DEVICES or XLA_FLAGS may set their number"
            )
        devices = found[:devices]
    shape = (len(devices) // (split.fsdp * split.tensor), split.fsdp, split.tensor)
    # make_mesh gives Explicit axes by default, which shard_map's automatic parts refuse
    return jax.make_mesh(shape, (DATA, FSDP, TENSOR), (AxisType.Auto,) * 3, devices=devices)


def model_sharding(cfg: MeshConfig, n_devices: int, n_local: int) -> ModelSharding:
    """How a config divides the model among `n_devices`, of which each process has `n_local`.

    Raises `UserError` if the axes do not multiply to the number of devices.

    >>> model_sharding(MeshConfig(fsdp=2), n_devices=8, n_local=8)
    ModelSharding(fsdp=2, tensor=1)
    """
    group = cfg.fsdp * cfg.tensor
    asked = f"mesh.fsdp {cfg.fsdp} x mesh.tensor {cfg.tensor}"
    if n_devices % group:
        raise UserError(
            f"{asked} = {group} does not divide the {n_devices} devices here: choose sizes whose "
            f"product does"
        )
    if cfg.data is not None and cfg.data * group != n_devices:
        raise UserError(
            f"mesh.data {cfg.data} x {asked} = {cfg.data * group}, but there are {n_devices} "
            f"devices: leave mesh.data out, or make it {n_devices // group}"
        )
    if n_local % cfg.tensor:
        raise UserError(
            f"mesh.tensor {cfg.tensor} does not divide the {n_local} devices of a process: devices "
            "along it read the same rows"
        )
    return ModelSharding(cfg.fsdp, cfg.tensor)


def sharding_on(mesh: Mesh) -> ModelSharding:
    """How a mesh divides the model."""
    return ModelSharding(mesh.shape[FSDP], mesh.shape[TENSOR])


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes that divide rows; `fsdp` only if it has several devices."""
    return (DATA, FSDP) if mesh.shape[FSDP] > 1 else (DATA,)


def row_groups(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Tree, params: Tree, mesh: Mesh) -> Tree:
    """The placement of every leaf of a state: leaves shaped like a parameter lie where it does.

    A leaf belongs to the parameter whose name is the end of its own, as Adam's moments do. A leaf
    that belongs to none, or has another shape, is whole on every device.
    """
    split = sharding_on(mesh)
    if split == UNSHARDED:
        return jax.tree.map(lambda _: replicated(mesh), tree)
    known = named_leaves(params)

    def place(name: str, leaf: Any) -> NamedSharding:
        parts = name.split("/")
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        owner = next((e for e in endings if e in known), None)
        if owner is None or known[owner].shape != leaf.shape:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*split.place(owner)))

    return jax.tree.map(place, leaf_names(tree), tree)


def rows_spec(mesh: Mesh, axis: int) -> PartitionSpec:
    """The spec of a batch whose rows are along `axis`."""
    return PartitionSpec(*[None] * axis, row_axes(mesh))


def put_rows(mesh: Mesh, batch: Any, axis: int) -> Any:
    """Start copying this process's part of a batch to its devices, split along `axis`.

    The result is the global batch of all processes; process order is row order.
    """
    sharding = NamedSharding(mesh, rows_spec(mesh, axis))
    return jax.tree.map(lambda x: _put(sharding, x), batch)


def put_everywhere(mesh: Mesh, value: Any) -> jax.Array:
    """Start copying a value, equal on all processes, to every device."""
    return _put(replicated(mesh), np.asarray(value))


def _put(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
    # with several processes jax's guard mistakes this for an implicit copy
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, x)


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of a batch are divided: A micro-steps of `micro_batch` rows in every group."""

    micro_steps: int
    micro_batch: int
    row_groups: int
    """Devices with rows of their own; with `tensor`, groups of devices."""
    context: int

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-step over all devices."""
        return self.micro_batch * self.row_groups

    def of_rows(self, rows: int) -> "BatchLayout":
        """The same layout for a batch of `rows` rows: the one place that derives micro-steps."""
        return replace(self, micro_steps=rows // self.micro_rows)

    def __str__(self) -> str:
        tokens = self.micro_steps * self.micro_rows * self.context
        return (
            f"{self.micro_steps} micro-steps x {self.row_groups} devices x {self.micro_batch} "
            f"sequences x {self.context} tokens = {tokens:,} tokens a step"
        )


def rows_per_device(config: Config, groups: int) -> int:
    """Rows of the smallest batch that each of `groups` devices computes.

    Raises `ConfigError` if the rows do not divide among the devices.
    """
    if problem := rows_problem(config, groups):
        raise ConfigError([problem])
    return batch_schedule(config).first // groups


def batch_layout(config: Config, groups: int, micro_batch: int) -> BatchLayout:
    """Derive the micro-steps from the batch; they are never set by hand.

    If the rows of a device do not fill `micro_batch`, the largest smaller one that divides them is
    taken.

    >>> layout = batch_layout(Config(), groups=8, micro_batch=16)  # 512 x 1,024 tokens a step
    >>> layout.micro_steps
    4
    """
    per_device = rows_per_device(config, groups)
    largest = min(micro_batch, per_device)
    micro = next(m for m in range(largest, 0, -1) if per_device % m == 0)
    return BatchLayout(1, micro, groups, config.context).of_rows(config.batch_rows)


def abstract_batch(mesh: Mesh, layout: BatchLayout, example: Any, steps: int = 1) -> Any:
    """Shapes, types and placement of a step's batch of examples like this one, for compiling.

    Several `steps` add a leading axis.
    """
    rows = (*([steps] if steps > 1 else []), layout.micro_steps, layout.micro_rows)
    sharding = NamedSharding(mesh, rows_spec(mesh, axis=len(rows) - 1))
    return {
        name: jax.ShapeDtypeStruct((*rows, *x.shape), x.dtype, sharding=sharding)
        for name, x in example.items()
    }

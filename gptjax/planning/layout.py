"""How a run is laid out on its GPUs: the mesh and the nodes.

The mesh is data x fsdp x tensor, tensor innermost, so that devices that talk most are nearest.
"""

from dataclasses import dataclass, replace

from gptjax.base.errors import ConfigError
from gptjax.config import Config
from gptjax.config.batches import rows_problem
from gptjax.model.places import ModelSharding

AXES = ("data", "fsdp", "tensor")
ROWS = "data x fsdp"  # both axes as one: every device along it has its own rows


@dataclass(frozen=True)
class Layout:
    """The mesh's three axes and the number of GPUs in a node."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    gpus_per_node: int = 8

    @property
    def gpus(self) -> int:
        """All devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def groups(self) -> int:
        """Devices with their own rows; with `tensor`, groups of devices."""
        return self.data * self.fsdp

    @property
    def nodes(self) -> int:
        """Machines; the last may be partly empty."""
        return -(-self.gpus // self.gpus_per_node)

    def size(self, axis: str) -> int:
        """Devices along an axis, or along `ROWS`."""
        return self.groups if axis == ROWS else getattr(self, axis)

    def within_node(self, axis: str) -> int:
        """Devices along an axis that share a node, if axes fill nodes from the innermost on."""
        inner = 1 if axis == "tensor" else self.tensor
        inner *= self.fsdp if axis == "data" else 1
        return min(self.size(axis), max(1, self.gpus_per_node // inner))

    def __str__(self) -> str:
        return " x ".join(f"{axis} {self.size(axis)}" for axis in AXES)


def with_vocabulary(config: Config) -> Config:
    """The config with its tokenizer's vocabulary size.

    Raises `ConfigError` if only prepared data can tell the size.
    """
    if config.model.n_vocab is not None:
        return config
    kind, _, size = (config.data.tokenizer or "").partition(":")
    sizes = {"gpt2": 50257, "gpt1": 40478, "bytes": 257, "bpe": int(size) if size else None}
    if (n_vocab := sizes.get(kind)) is None:
        problem = "only prepared data tells the size of the vocabulary: add --model.n-vocab N"
        raise ConfigError([problem])
    return replace(config, model=replace(config.model, n_vocab=n_vocab))


def lay_out(config: Config, gpus: int, gpus_per_node: int = 8) -> Layout:
    """The mesh of a config over `gpus` GPUs.

    Raises a `ConfigError` with every problem: axes that do not multiply to the number of GPUs, or
    that do not divide the dimensions along them.
    """
    wrong = [
        f"--{name} must be at least 1, not {value}"
        for name, value in (("gpus", gpus), ("gpus-per-node", gpus_per_node))
        if value < 1
    ]
    if wrong:
        raise ConfigError(wrong)
    mesh, model = config.mesh, config.model
    model_gpus = mesh.fsdp * mesh.tensor
    data = gpus // model_gpus if mesh.data is None else mesh.data
    if data * model_gpus != gpus:
        axes = f"mesh.fsdp {mesh.fsdp} x mesh.tensor {mesh.tensor}"
        if mesh.data is not None:
            axes = f"mesh.data {mesh.data} x {axes}"
        problem = f"{axes} does not go into {gpus} GPUs: try --gpus {model_gpus * max(1, data)}"
        raise ConfigError([problem])
    problems = [
        f"{axis} {size} does not divide {name} {dimension}: try --{axis} {fits}"
        for axis, size, name, dimension, fits in ModelSharding(mesh.fsdp, mesh.tensor).indivisible(
            model
        )
    ]
    layout = Layout(data, mesh.fsdp, mesh.tensor, gpus_per_node)
    if mesh.tensor > gpus_per_node or gpus_per_node % mesh.tensor:
        problems.append(
            f"mesh.tensor {mesh.tensor} does not divide the {gpus_per_node} GPUs of a node: "
            "devices along it must share a node"
        )
    problems += [problem] if (problem := rows_problem(config, layout.groups)) else []
    if problems:
        raise ConfigError(problems)
    return layout

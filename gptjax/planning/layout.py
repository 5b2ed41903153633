"""How a run lies on its GPUs: the mesh, the nodes, and which part of every parameter a device has.

The mesh is data x fsdp x tensor, tensor innermost, so that what talks most is nearest. Leaves are
those of `gptjax.model`, written out without jax; a test compares the two.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from gptjax.config import Config, ModelConfig
from gptjax.errors import ConfigError
from gptjax.places import Split, axes_of
from gptjax.ramp import rows_problem

AXES = ("data", "fsdp", "tensor")
ROWS = "data x fsdp"  # both axes as one: what has rows of its own


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
        """Devices, or groups of them along `tensor`, with rows of their own."""
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


class Leaf(NamedTuple):
    """One parameter array: its shape, and the mesh axes that divide it, as `axes_of` says."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @property
    def elements(self) -> int:
        """Numbers in the whole array."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is divided over `fsdp`: kernels and tables."""
        return "fsdp" in self.axes

    def part(self, layout: Layout, *axes: str) -> int:
        """Numbers on one device if divided over those of `axes`; over all by default."""
        kept = [a for a in self.axes if a is not None and (not axes or a in axes)]
        return self.elements // math.prod(layout.size(a) for a in kept)


def leaves(model: ModelConfig) -> list[Leaf]:
    """Every parameter array of a model, with the vocabulary padded, as it is stored."""
    d, n, v = model.n_embd, model.n_layer, model.padded_vocab
    shapes = {
        "wte/embedding": (v, d),
        "wpe/embedding": (model.n_ctx, d),
        "h/attn/c_attn/kernel": (n, d, 3 * d),
        "h/attn/c_proj/kernel": (n, d, d),
        "h/mlp/c_fc/kernel": (n, d, 4 * d),
        "h/mlp/c_proj/kernel": (n, 4 * d, d),
    }
    norms = {"h/ln_1": (n, d), "h/ln_2": (n, d)} | ({"ln_f": (d,)} if model.final_norm else {})
    shapes |= {f"{norm}/scale": shape for norm, shape in norms.items()}
    if model.qkv_bias:
        shapes["h/attn/c_attn/bias"] = (n, 3 * d)
    if model.bias:
        shapes |= {f"{norm}/bias": shape for norm, shape in norms.items()}
        shapes |= {"h/attn/c_proj/bias": (n, d), "h/mlp/c_proj/bias": (n, d)}
        shapes["h/mlp/c_fc/bias"] = (n, 4 * d)
    if not model.tied_head:
        shapes["lm_head"] = (v, d)
    return [Leaf(name, shape, axes_of(name)) for name, shape in shapes.items()]


def with_vocabulary(config: Config) -> Config:
    """The config with the vocabulary that its tokenizer will have.

    Raises `ConfigError` where only prepared data tells.
    """
    if config.model.n_vocab is not None:
        return config
    kind, _, size = (config.data.tokenizer or "").partition(":")
    sizes = {"gpt2": 50257, "bytes": 257, "bpe": int(size) if size else None}
    if (n_vocab := sizes.get(kind)) is None:
        problem = "only prepared data tells the size of the vocabulary: add --model.n-vocab N"
        raise ConfigError([problem])
    return replace(config, model=replace(config.model, n_vocab=n_vocab))


def lay_out(config: Config, gpus: int, gpus_per_node: int = 8) -> Layout:
    """The mesh of a config over so many GPUs.

    Raises `ConfigError` with every reason why it cannot be: axes that do not multiply to the number
    of GPUs, or that do not divide what lies along them.
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
        for axis, size, name, dimension, fits in Split(mesh.fsdp, mesh.tensor).misfits(model)
    ]
    layout = Layout(data, mesh.fsdp, mesh.tensor, gpus_per_node)
    if mesh.tensor > gpus_per_node or gpus_per_node % mesh.tensor:
        problems.append(
            f"mesh.tensor {mesh.tensor} does not divide the {gpus_per_node} GPUs of a node: "
            "devices along it have to share one"
        )
    problems += [problem] if (problem := rows_problem(config, layout.groups)) else []
    if problems:
        raise ConfigError(problems)
    return layout

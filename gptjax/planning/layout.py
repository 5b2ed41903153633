"""How a run lies on its GPUs: the mesh, the nodes, and which part of every parameter a device has.

The mesh is data x fsdp x tensor, tensor innermost, so that what talks most is nearest. Leaves and
their axes are those of `gptjax.model.parallel`, written out without jax; a test compares the two.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from gptjax.config import Config, ModelConfig
from gptjax.errors import ConfigError
from gptjax.ramp import batch_ramp

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
    """One parameter array: its shape, and the mesh axis that divides each dimension."""

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
    found = [
        Leaf("wte/embedding", (v, d), ("tensor", "fsdp")),
        Leaf("wpe/embedding", (model.n_ctx, d), (None, "fsdp")),
        Leaf("h/attn/c_attn/kernel", (n, d, 3 * d), (None, "fsdp", "tensor")),
        Leaf("h/attn/c_proj/kernel", (n, d, d), (None, "tensor", "fsdp")),
        Leaf("h/mlp/c_fc/kernel", (n, d, 4 * d), (None, "fsdp", "tensor")),
        Leaf("h/mlp/c_proj/kernel", (n, 4 * d, d), (None, "tensor", "fsdp")),
    ]
    norms = ["h/ln_1", "h/ln_2"] + ["ln_f"] * model.final_norm
    vectors = [(f"{norm}/scale", d) for norm in norms]
    if model.qkv_bias:
        vectors.append(("h/attn/c_attn/bias", 3 * d))
    if model.bias:
        vectors += [(f"{norm}/bias", d) for norm in norms]
        vectors += [("h/attn/c_proj/bias", d), ("h/mlp/c_proj/bias", d)]
        found.append(Leaf("h/mlp/c_fc/bias", (n, 4 * d), (None, "tensor")))
    if not model.tied_head:
        found.append(Leaf("lm_head", (v, d), ("tensor", "fsdp")))
    for name, width in vectors:
        shape = (n, width) if name.startswith("h/") else (width,)
        found.append(Leaf(name, shape, (None,) * len(shape)))
    return found


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
    has_to_divide = (
        ("mesh.fsdp", mesh.fsdp, "model.n_embd", model.n_embd),
        ("mesh.tensor", mesh.tensor, "model.n_head", model.n_head),
        ("mesh.tensor", mesh.tensor, "the padded vocabulary", model.padded_vocab),
    )
    problems = [
        f"{axis} {size} does not divide {name} {dimension}: try --{axis} "
        f"{max(n for n in range(1, size) if dimension % n == 0)}"
        for axis, size, name, dimension in has_to_divide
        if dimension % size
    ]
    layout = Layout(data, mesh.fsdp, mesh.tensor, gpus_per_node)
    if mesh.tensor > gpus_per_node or gpus_per_node % mesh.tensor:
        problems.append(
            f"mesh.tensor {mesh.tensor} does not divide the {gpus_per_node} GPUs of a node: "
            "devices along it have to share one"
        )
    problems += [rows_problem(config, layout)] if rows_problem(config, layout) else []
    if problems:
        raise ConfigError(problems)
    return layout


def rows_problem(config: Config, layout: Layout) -> str:
    """Why the rows of the smallest update do not divide among the devices; empty if they do."""
    rows, groups = batch_ramp(config).first, layout.groups
    if rows % groups == 0:
        return ""
    name = "batch_tokens" if config.train.ramp_from_tokens is None else "ramp_from_tokens"
    near = max(1, round(rows / groups)) * groups * config.context
    return (
        f"train.{name} {rows * config.context} is {rows} sequences of {config.context} tokens, "
        f"which do not divide among data {layout.data} x fsdp {layout.fsdp} = {groups} groups of "
        f"GPUs: try {near}"
    )

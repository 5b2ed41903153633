"""One table of all parameters: the name and treatment of each. Read without jax.

Counts, the planner, decay, Muon's groups, the division over devices and conversion read it. Over
`fsdp` every matrix is stored in parts and gathered for use; over `tensor` the heads, the MLP's
width and the vocabulary are divided. `gptjax.model.parallel` computes accordingly.

Letters: D width, F MLP width, N layers, V vocabulary (padded), T context, C classes, R rank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple, Protocol

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig

FSDP, TENSOR = "fsdp", "tensor"
STACK = "h/"  # leaves below it have the layer as their first dimension


class Sizes(Protocol):
    """Anything that knows the number of devices along an axis of the mesh."""

    def size(self, axis: str) -> int:
        """Devices along `axis`."""
        ...


class Leaf(NamedTuple):
    """One parameter array, a row of the table. A stack's first dimension is the layer."""

    name: str
    """Its keys in the parameter tree, joined with slashes."""
    shape: tuple[int, ...]
    """Its stored shape, with the vocabulary padded."""
    axes: tuple[str | None, ...]
    """The axis of the mesh that divides each dimension; those after the last are whole."""
    is_decayed: bool
    """Whether weight decay applies: to matrices and tables, not to biases and norms."""
    is_block_matrix: bool
    """Whether it is a matrix of the blocks: Muon orthogonalises it, every token multiplies it."""
    huggingface: str
    """Its name in the state of GPT2LMHeadModel, or of OpenAIGPTLMHeadModel where norms come after
    the sums; `{}` stands for the layer, because each layer has its own array there. Empty for
    leaves that these models do not have: the classification head and adapters."""
    padding: int = 0
    """Last rows of the first dimension that only pad the vocabulary: no paper counts them, and no
    other program has them."""

    @property
    def module(self) -> str:
        """Its name without the last key."""
        return self.name.rpartition("/")[0]

    @property
    def elements(self) -> int:
        """Numbers in the whole array."""
        return math.prod(self.shape)

    @property
    def published_shape(self) -> tuple[int, ...]:
        """The shape without padding."""
        return (self.shape[0] - self.padding, *self.shape[1:])

    @property
    def is_matrix(self) -> bool:
        """Whether it is divided over `fsdp`: kernels and tables."""
        return FSDP in self.axes

    def part(self, sizes: Sizes, *axes: str) -> int:
        """Numbers on one device if `axes` divide it; all axes by default."""
        kept = [a for a in self.axes if a is not None and (not axes or a in axes)]
        return self.elements // math.prod(sizes.size(a) for a in kept)


def leaves(cfg: ModelConfig) -> list[Leaf]:
    """Every parameter of a model, given its switches.

    Norms, most biases, the classification head and adapters are too small to be worth dividing;
    only the input of an adapter is divided over `tensor` where that of its matrix is.

    >>> [leaf.name for leaf in leaves(ModelConfig(n_vocab=50257)) if not leaf.name.startswith("h/")]
    ['wte/embedding', 'wpe/embedding', 'ln_f/scale', 'ln_f/bias']
    """
    d, f, n, t, v = cfg.n_embd, 4 * cfg.n_embd, cfg.n_layer, cfg.n_ctx, cfg.padded_vocab
    padding = v - (cfg.n_vocab or 0) - cfg.n_special
    wte, wpe = ("wte", "wpe") if cfg.norm == "pre" else ("tokens_embed", "positions_embed")
    vocab, into, out_of = (TENSOR, FSDP), (None, FSDP, TENSOR), (None, TENSOR, FSDP)
    qkv, bias, final, h = cfg.qkv_bias, cfg.bias, cfg.final_norm, "transformer.h.{}"
    # is there, then the fields of Leaf in their order
    table = [
        (True, "wte/embedding", (v, d), vocab, True, False, f"transformer.{wte}.weight", padding),
        (True, "wpe/embedding", (t, d), (None, FSDP), True, False, f"transformer.{wpe}.weight"),
        (True, "h/ln_1/scale", (n, d), (), False, False, f"{h}.ln_1.weight"),
        (bias, "h/ln_1/bias", (n, d), (), False, False, f"{h}.ln_1.bias"),
        (True, "h/attn/c_attn/kernel", (n, d, 3 * d), into, True, True, f"{h}.attn.c_attn.weight"),
        (qkv, "h/attn/c_attn/bias", (n, 3 * d), (), False, False, f"{h}.attn.c_attn.bias"),
        (True, "h/attn/c_proj/kernel", (n, d, d), out_of, True, True, f"{h}.attn.c_proj.weight"),
        (bias, "h/attn/c_proj/bias", (n, d), (), False, False, f"{h}.attn.c_proj.bias"),
        (True, "h/ln_2/scale", (n, d), (), False, False, f"{h}.ln_2.weight"),
        (bias, "h/ln_2/bias", (n, d), (), False, False, f"{h}.ln_2.bias"),
        (True, "h/mlp/c_fc/kernel", (n, d, f), into, True, True, f"{h}.mlp.c_fc.weight"),
        (bias, "h/mlp/c_fc/bias", (n, f), (None, TENSOR), False, False, f"{h}.mlp.c_fc.bias"),
        (True, "h/mlp/c_proj/kernel", (n, f, d), out_of, True, True, f"{h}.mlp.c_proj.weight"),
        (bias, "h/mlp/c_proj/bias", (n, d), (), False, False, f"{h}.mlp.c_proj.bias"),
        (final, "ln_f/scale", (d,), (), False, False, "transformer.ln_f.weight"),
        (final and bias, "ln_f/bias", (d,), (), False, False, "transformer.ln_f.bias"),
        (not cfg.tied_head, "lm_head", (v, d), vocab, True, False, "lm_head.weight", padding),
        (cfg.n_classes > 0, "clf/kernel", (d, cfg.n_classes), (), True, False, ""),
        (cfg.n_classes > 0, "clf/bias", (cfg.n_classes,), (), False, False, ""),
    ]  # fmt: skip
    found = [Leaf(*row) for is_there, *row in table if is_there]
    adapted = [leaf for leaf in found if leaf.is_block_matrix and has_adapter(leaf.module, cfg)]
    return found + [adapter for leaf in adapted for adapter in _adapters(leaf, cfg)]


def has_adapter(module: str, cfg: ModelConfig) -> bool:
    """Whether a projection of the blocks is one that `lora_targets` names.

    >>> cfg = ModelConfig(lora_rank=8, lora_targets=("c_proj",))
    >>> has_adapter("h/attn/c_proj", cfg), has_adapter("h/attn/c_attn", cfg)
    (True, False)
    """
    named = any(fnmatchcase(module, f"*/{target}") for target in cfg.lora_targets)
    return cfg.lora_rank > 0 and named


def _adapters(leaf: Leaf, cfg: ModelConfig) -> list[Leaf]:
    """The two matrices of an adapter, [N, in, R] and [N, R, out] beside a kernel [N, in, out]."""
    n, inputs, outputs = leaf.shape
    divided = {axis: place for place, axis in enumerate(leaf.axes)}[TENSOR]
    # as for its bias, the heads of c_attn are cut out of the whole
    from_part = (None, TENSOR) if divided == 1 else ()
    into_part = (None, None, TENSOR) if divided == 2 and leaf.module != "h/attn/c_attn" else ()
    shapes = (n, inputs, cfg.lora_rank), (n, cfg.lora_rank, outputs)
    return [
        Leaf(f"{leaf.module}/lora_A", shapes[0], from_part, True, False, ""),
        Leaf(f"{leaf.module}/lora_B", shapes[1], into_part, True, False, ""),
    ]


@cache
def _rows() -> dict[str, Leaf]:
    """Rows by name, of a model with every switch on, for readers that need no shape."""
    everything = ModelConfig(
        n_vocab=0, qkv_bias=True, bias=True, final_norm=True, tied_head=False,
        n_classes=1, lora_rank=1, lora_targets=("*",),
    )  # fmt: skip
    return {leaf.name: leaf for leaf in leaves(everything)}


def _row(name: str) -> Leaf:
    if name not in _rows():
        raise ValueError(f"parameter {name} is not in the table of leaves")
    return _rows()[name]


def axes_of(name: str) -> tuple[str | None, ...]:
    """The axis that divides each dimension of the leaf `name`; those after the last are whole.

    Like the two below it raises `ValueError` for a name that the table does not have, so that a
    new parameter cannot go unnoticed.

    >>> axes_of("h/mlp/c_fc/kernel")
    (None, 'fsdp', 'tensor')
    """
    return _row(name).axes


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to the leaf `name`.

    >>> is_decayed("wte/embedding"), is_decayed("h/ln_1/scale")
    (True, False)
    """
    return _row(name).is_decayed


def is_block_matrix(name: str) -> bool:
    """Whether the leaf `name` is a stack of the blocks' matrices.

    >>> is_block_matrix("wte/embedding"), is_block_matrix("h/attn/c_proj/kernel")
    (False, True)
    """
    return _row(name).is_block_matrix


@dataclass(frozen=True)
class ModelSharding:
    """The numbers of devices that divide a model; one each by default."""

    fsdp: int = 1
    tensor: int = 1

    def indivisible(self, cfg: ModelConfig) -> Iterator[tuple[str, int, str, int, int]]:
        """Indivisible dimensions: axis, its size, the dimension's name and size, a size that fits.

        The last one divides every dimension along the axis.
        """
        along = {
            "mesh.fsdp": (self.fsdp, {"model.n_embd": cfg.n_embd}),
            "mesh.tensor": (
                self.tensor,
                {"model.n_head": cfg.n_head, "the padded vocabulary": cfg.padded_vocab},
            ),
        }
        for axis, (size, dimensions) in along.items():
            for name, dimension in dimensions.items():
                if dimension % size:
                    divides_all = (
                        n for n in range(1, size) if all(d % n == 0 for d in dimensions.values())
                    )
                    yield axis, size, name, dimension, max(divides_all)

    def check(self, cfg: ModelConfig) -> None:
        """Raise `UserError` if a dimension does not divide."""
        for axis, size, name, dimension, fits in self.indivisible(cfg):
            raise UserError(
                f"{axis} {size} does not divide {name}, {dimension}: try --{axis} {fits}"
            )

    def size(self, axis: str) -> int:
        """Devices along an axis."""
        return {FSDP: self.fsdp, TENSOR: self.tensor}[axis]

    def place(self, name: str) -> tuple[str | None, ...]:
        """`axes_of` a leaf, without axes of one device."""
        return tuple(axis if axis and self.size(axis) > 1 else None for axis in axes_of(name))


UNSHARDED = ModelSharding()

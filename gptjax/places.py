"""Which leaf of a model is divided along which axis of the mesh: one table, read without jax.

Over `fsdp` every matrix is stored in parts and gathered where it is used; over `tensor` the heads,
the MLP's width and the vocabulary are divided. `gptjax.model.parallel` computes by it, and
`gptjax.planning` counts by it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptjax.config import ModelConfig
from gptjax.errors import UserError

FSDP, TENSOR = "fsdp", "tensor"
# Every leaf's name, and the axis that divides each of its dimensions. A stack's first dimension
# is the layer. Norms and most biases are too small to be worth dividing.
PLACES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"wte/embedding|lm_head", (TENSOR, FSDP)),
    (r"wpe/embedding", (None, FSDP)),
    (r"h/(attn/c_attn|mlp/c_fc)/kernel", (None, FSDP, TENSOR)),
    (r"h/(attn|mlp)/c_proj/kernel", (None, TENSOR, FSDP)),
    (r"h/mlp/c_fc/bias", (None, TENSOR)),
    (r"(h/)?ln_\w+/(scale|bias)|h/attn/c_attn/bias|h/(attn|mlp)/c_proj/bias", ()),
)


def axes_of(name: str) -> tuple[str | None, ...]:
    """The axis that divides each dimension of the leaf `name`; those after the last are whole.

    Raises `ValueError` for a name that no rule, or more than one, covers.
    """
    found = [axes for pattern, axes in PLACES if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise ValueError(f"parameter {name} is covered by {len(found)} rules of PLACES")
    return found[0]


@dataclass(frozen=True)
class Split:
    """How many devices a model is divided among; the whole model by default."""

    fsdp: int = 1
    tensor: int = 1

    def misfits(self, cfg: ModelConfig) -> Iterator[tuple[str, int, str, int, int]]:
        """What does not divide: axis, its size, the dimension's name and size, a size that would.

        The last divides all that lies along the axis.
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
        """Raise `UserError` where a dimension does not divide."""
        for axis, size, name, dimension, fits in self.misfits(cfg):
            raise UserError(
                f"{axis} {size} does not divide {name}, {dimension}: try --{axis} {fits}"
            )

    def place(self, name: str) -> tuple[str | None, ...]:
        """`axes_of` a leaf, axes of one device left out."""
        axes = axes_of(name)
        sizes = {FSDP: self.fsdp, TENSOR: self.tensor}
        return tuple(axis if axis and sizes[axis] > 1 else None for axis in axes)

    def specs(self, params: Any) -> Any:
        """The place of every leaf, for `shard_map` and for placement."""
        import jax

        from gptjax.tree import leaf_names

        return jax.tree.map(
            lambda name: jax.sharding.PartitionSpec(*self.place(name)), leaf_names(params)
        )


WHOLE = Split()

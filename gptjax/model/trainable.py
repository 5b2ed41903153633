"""The parameters that a run trains, by their names in the table of leaves. Read without jax.

With adapters these are the adapters and a head that classifies, and a checkpoint holds no others.
`gptjax.model.freezing` cuts trees of arrays accordingly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gptjax.base.errors import UserError, did_you_mean
from gptjax.config import ModelConfig
from gptjax.model.places import STACK, Leaf, leaves

_ADAPTED = ("*/lora_A", "*/lora_B", "clf/*")  # what is trained beside frozen matrices


@dataclass(frozen=True)
class Trainable:
    """The names of the leaves that are trained; of stacks only the blocks from `first_block` on."""

    names: frozenset[str]
    first_block: int

    def cuts(self, name: str) -> bool:
        """Whether the first layers of a trained or frozen leaf are frozen."""
        return self.first_block > 0 and name.startswith(STACK)

    def part(self, leaf: Leaf) -> Leaf | None:
        """The part of a leaf that is trained, as a leaf; None if it is frozen.

        >>> cfg = ModelConfig(n_layer=3, n_head=1, n_embd=4, n_ctx=8, n_vocab=9)
        >>> scale = next(leaf for leaf in leaves(cfg) if leaf.name == "h/ln_1/scale")
        >>> Trainable(frozenset({"h/ln_1/scale"}), 2).part(scale).shape
        (1, 4)
        """
        if leaf.name not in self.names:
            return None
        if not self.cuts(leaf.name):
            return leaf
        return leaf._replace(shape=(leaf.shape[0] - self.first_block, *leaf.shape[1:]))

    def in_words(self, leaf: Leaf) -> str:
        """Whether a leaf is trained, for a table: yes, no, or which blocks of it.

        >>> cfg = ModelConfig(n_layer=3, n_head=1, n_embd=4, n_ctx=8, n_vocab=9)
        >>> trainable = Trainable(frozenset({"h/ln_1/scale", "wte/embedding"}), 1)
        >>> [trainable.in_words(leaf) for leaf in leaves(cfg)[:3]]
        ['yes', 'no', 'blocks 1 to 2']
        """
        if leaf.name not in self.names:
            return "no"
        if not self.cuts(leaf.name):
            return "yes"
        last = leaf.shape[0] - 1
        return (
            f"blocks {self.first_block} to {last}" if self.first_block < last else f"block {last}"
        )


def trainable(
    cfg: ModelConfig, patterns: Sequence[str] = (), last_blocks: int | None = None
) -> Trainable:
    """The leaves of a model that patterns such as `h/*` or `*/bias` name; all without a pattern.

    With adapters these are trained, and the classification head. `last_blocks` is the number of
    blocks whose leaves are trained. Raises `UserError` for a pattern that names nothing, and for
    adapters beside no matrix.

    >>> cfg = ModelConfig(n_layer=3, n_head=1, n_embd=4, n_ctx=8, n_vocab=9)
    >>> sorted(trainable(cfg, ["h/ln_1/*", "ln_f/*"], last_blocks=1).names)
    ['h/ln_1/bias', 'h/ln_1/scale', 'ln_f/bias', 'ln_f/scale']
    """
    known = [leaf.name for leaf in leaves(cfg)]
    if cfg.lora_rank:
        _require_targets(cfg)
        names = adapter_names(cfg)
    else:
        names = frozenset(n for n in known for p in patterns or ("*",) if fnmatchcase(n, p))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UserError(
                    f"optim.trainable {pattern} names no parameter of this model"
                    f"{did_you_mean(pattern, known)}: it has {', '.join(known)}"
                )
    blocks = cfg.n_layer if last_blocks is None else last_blocks
    if not 1 <= blocks <= cfg.n_layer:
        raise UserError(
            f"optim.trainable_layers is {last_blocks}: expected 1 to {cfg.n_layer}, the blocks of "
            "this model"
        )
    return Trainable(names, cfg.n_layer - blocks)


def _require_targets(cfg: ModelConfig) -> None:
    """Raise `UserError` if one of `lora_targets` names no matrix of the blocks."""
    matrices = [leaf.module for leaf in leaves(cfg) if leaf.is_block_matrix]
    missing = [t for t in cfg.lora_targets if not any(fnmatchcase(m, f"*/{t}") for m in matrices)]
    if missing or not cfg.lora_targets:
        ends = [matrix.removeprefix(STACK) for matrix in matrices]
        raise UserError(
            f"model.lora_targets {' '.join(missing) or 'is empty and'} names no matrix of the "
            f"blocks: they are {', '.join(ends)}, and c_attn, c_fc, c_proj or mlp/* for short"
        )


def adapter_names(cfg: ModelConfig) -> frozenset[str]:
    """The leaves that a checkpoint with adapters holds: these, and a head that classifies.

    >>> cfg = ModelConfig(n_vocab=9, n_classes=2, lora_rank=4)
    >>> sorted(adapter_names(cfg))
    ['clf/bias', 'clf/kernel', 'h/attn/c_attn/lora_A', 'h/attn/c_attn/lora_B']
    """
    known = [leaf.name for leaf in leaves(cfg)]
    return frozenset(name for name in known for p in _ADAPTED if fnmatchcase(name, p))


def trained_count(cfg: ModelConfig, chosen: Trainable) -> int:
    """Number of trained parameters, without the padding of the vocabulary.

    GPT-2 small with adapters of rank 16 beside all of its matrices; PEFT counts the same.

    >>> cfg = ModelConfig(n_vocab=50257, lora_rank=16, lora_targets=("c_attn", "c_proj", "c_fc"))
    >>> trained_count(cfg, trainable(cfg))
    2359296
    """
    parts = [chosen.part(leaf) for leaf in leaves(cfg)]
    return sum(math.prod(part.published_shape) for part in parts if part is not None)

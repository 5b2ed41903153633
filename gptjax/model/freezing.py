"""Which parameters a step trains: leaves by patterns of their names, in the last blocks or in all.

A step differentiates and updates only what `split` gives first; everything else passes through it
unchanged, without gradients and without state of an optimizer. Frozen first blocks lie apart in
`for_loss`, so that the backward pass ends at the first block that is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gptjax.base.tree import Tree, as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import FROZEN_BLOCKS
from gptjax.model.places import STACK, leaves
from gptjax.model.trainable import Trainable, trainable


@dataclass(frozen=True)
class Trained(Trainable):
    """What is trainable, for trees of arrays."""

    everything: bool
    """Whether nothing is frozen; then all of the functions below return what they are given."""
    are_adapters: bool = False
    """Whether the trained leaves are adapters, and a checkpoint holds no others."""

    def parts(self, tree: Tree) -> tuple[Tree, Tree]:
        """The values of a tree like the parameters that belong to each part; stacks are not cut."""
        named = named_leaves(tree)
        trained = {name: x for name, x in named.items() if name in self.names}
        frozen = {name: x for name, x in named.items() if name not in trained or self.cuts(name)}
        return as_tree(trained), as_tree(frozen)

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """The trained part of a tree of parameters, and the rest."""
        if self.everything:
            return params, {}
        trained, frozen = map(named_leaves, self.parts(params))
        for name in trained:
            if self.cuts(name):
                x = trained[name]
                trained[name], frozen[name] = x[self.first_block :], x[: self.first_block]
        return as_tree(trained), as_tree(frozen)

    def updated(self, params: Tree, trained: Tree) -> Tree:
        """The whole tree with new values of its trained part; frozen numbers stay, bit for bit."""
        if self.everything:
            return trained
        new = named_leaves(trained)

        def value(name: str, x):
            if name not in new:
                return x
            return x.at[self.first_block :].set(new[name]) if self.cuts(name) else new[name]

        return as_tree({name: value(name, x) for name, x in named_leaves(params).items()})

    def for_loss(self, trained: Tree, frozen: Tree) -> Tree:
        """Both parts as one tree that `GPT.features` reads, with frozen first blocks apart."""
        if self.everything:
            return trained
        ours, theirs, joined = named_leaves(trained), named_leaves(frozen), {}
        for name in {**ours, **theirs}:
            if not self.cuts(name):
                joined[name] = ours[name] if name in ours else theirs[name]
                continue
            first = theirs[name][: self.first_block]
            joined[f"{FROZEN_BLOCKS}/{name.removeprefix(STACK)}"] = first
            joined[name] = ours[name] if name in ours else theirs[name][self.first_block :]
        return as_tree(joined)


EVERYTHING = Trained(frozenset(), 0, True)


def trained_leaves(
    cfg: ModelConfig, patterns: Sequence[str] = (), last_blocks: int | None = None
) -> Trained:
    """What `trainable` chooses, for trees of arrays; it raises the same errors.

    >>> cfg = ModelConfig(n_layer=3, n_head=1, n_embd=4, n_ctx=8, n_vocab=9)
    >>> trained = trained_leaves(cfg, ["h/ln_1/*", "ln_f/*"], last_blocks=1)
    >>> sorted(trained.names), trained.first_block
    (['h/ln_1/bias', 'h/ln_1/scale', 'ln_f/bias', 'ln_f/scale'], 2)
    """
    chosen = trainable(cfg, patterns, last_blocks)
    everything = chosen.first_block == 0 and chosen.names == {leaf.name for leaf in leaves(cfg)}
    if everything:
        return EVERYTHING
    return Trained(chosen.names, chosen.first_block, False, cfg.lora_rank > 0)

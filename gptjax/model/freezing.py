"""Which parameters a step trains: leaves by patterns of their names, in the last blocks or in all.

A step differentiates and updates only what `split` gives first; everything else passes through it
unchanged, without gradients and without state of an optimizer. Frozen first blocks lie apart in
`for_loss`, so that the backward pass ends at the first block that is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gptjax.base.errors import UserError, did_you_mean
from gptjax.base.tree import Tree, as_tree, named_leaves
from gptjax.config import ModelConfig
from gptjax.model.gpt import FROZEN_BLOCKS
from gptjax.model.places import leaves

STACK = "h/"
ADAPTERS = ("*/lora_A", "*/lora_B", "clf/*")  # what is trained beside frozen matrices


@dataclass(frozen=True)
class Trained:
    """The names of the leaves that are trained; of stacks only the blocks from `first_block` on."""

    names: frozenset[str]
    first_block: int
    everything: bool
    """Whether nothing is frozen; then all of the functions below return what they are given."""

    def parts(self, tree: Tree) -> tuple[Tree, Tree]:
        """The values of a tree like the parameters that belong to each part; stacks are not cut."""
        named = named_leaves(tree)
        trained = {name: x for name, x in named.items() if name in self.names}
        frozen = {name: x for name, x in named.items() if name not in trained or self._cuts(name)}
        return as_tree(trained), as_tree(frozen)

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """The trained part of a tree of parameters, and the rest."""
        if self.everything:
            return params, {}
        trained, frozen = map(named_leaves, self.parts(params))
        for name in trained:
            if self._cuts(name):
                x = trained[name]
                trained[name], frozen[name] = x[self.first_block :], x[: self.first_block]
        return as_tree(trained), as_tree(frozen)

    def _cuts(self, name: str) -> bool:
        return self.first_block > 0 and name.startswith(STACK)

    def updated(self, params: Tree, trained: Tree) -> Tree:
        """The whole tree with new values of its trained part; frozen numbers stay, bit for bit."""
        if self.everything:
            return trained
        new = named_leaves(trained)

        def value(name: str, x):
            if name not in new:
                return x
            return x.at[self.first_block :].set(new[name]) if self._cuts(name) else new[name]

        return as_tree({name: value(name, x) for name, x in named_leaves(params).items()})

    def for_loss(self, trained: Tree, frozen: Tree) -> Tree:
        """Both parts as one tree that `GPT.features` reads, with frozen first blocks apart."""
        if self.everything:
            return trained
        ours, theirs, joined = named_leaves(trained), named_leaves(frozen), {}
        for name in {**ours, **theirs}:
            if not self._cuts(name):
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
    """The leaves of a model that patterns such as `h/*` or `*/bias` name; all without a pattern.

    With adapters these are trained, and the classification head. `last_blocks` is the number of
    blocks whose leaves are trained. Raises `UserError` for a pattern that names nothing.

    >>> cfg = ModelConfig(n_layer=3, n_head=1, n_embd=4, n_ctx=8, n_vocab=9)
    >>> trained = trained_leaves(cfg, ["h/ln_1/*", "ln_f/*"], last_blocks=1)
    >>> sorted(trained.names), trained.first_block
    (['h/ln_1/bias', 'h/ln_1/scale', 'ln_f/bias', 'ln_f/scale'], 2)
    """
    known = [leaf.name for leaf in leaves(cfg)]
    patterns = ADAPTERS if cfg.lora_rank else patterns
    if not patterns and last_blocks is None:
        return EVERYTHING
    names = {name for name in known for p in patterns or ("*",) if fnmatchcase(name, p)}
    for pattern in patterns:
        if pattern not in ADAPTERS and not any(fnmatchcase(name, pattern) for name in known):
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
    return Trained(
        frozenset(names), cfg.n_layer - blocks, names == set(known) and blocks == cfg.n_layer
    )

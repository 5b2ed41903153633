"""A model between two formats: its shape, its arrays under our names, its tokenizer.

Every reader returns `Weights`, and every writer takes them. `gptjax.model.places` is the one table
of names: Hugging Face has one array a layer, without padding, where ours are stacked and padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.config.schema import PRETRAIN
from gptjax.model.places import STACK, Leaf, leaves
from gptjax.model.size import parameter_count
from gptjax.tokenizers.plain import Tokenizer


@dataclass(frozen=True)
class Weights:
    """A model outside a run."""

    model: ModelConfig
    """Its shape and switches, with the vocabulary known."""
    arrays: dict[str, np.ndarray]
    """Float32 arrays under the names of `gptjax.model.places`: layers stacked, rows padded."""
    tokenizer: Tokenizer
    """Its tokenizer, with as many ids as the model; only an end-of-text may be beyond them."""
    source: str
    """Where it comes from, in words for messages and model cards."""
    notes: tuple[str, ...] = ()
    """What a user should know about the reading, a sentence each."""
    task: str = PRETRAIN
    """The task that it was trained for; some tasks use rows of the vocabulary's padding."""


def from_huggingface(
    theirs: Mapping[str, np.ndarray], cfg: ModelConfig, name: str, rows: int | None = None
) -> dict[str, np.ndarray]:
    """Our arrays from arrays under Hugging Face's names; the vocabulary is padded with zeros.

    Arrays are read one after the other, so a lazy mapping never holds them all. Their vocabulary
    has `rows`, or `n_vocab`. Raises a `UserError` that calls the source `name` and lists every
    array that is missing, left over or of another shape.
    """
    ours: dict[str, np.ndarray] = {}
    used: set[str] = set()
    problems: list[str] = []
    for leaf in published(cfg):
        is_stack = leaf.name.startswith(STACK)
        names = [leaf.huggingface.format(i) for i in range(cfg.n_layer if is_stack else 1)]
        expected = leaf.published_shape[1:] if is_stack else leaf.published_shape
        if leaf.padding and rows is not None:
            expected = (rows, *expected[1:])
        used |= set(names)
        for i, theirs_name in enumerate(names):
            if theirs_name not in theirs:
                problems.append(f"{theirs_name} {expected} is missing")
                continue
            found = theirs[theirs_name]
            if found.shape != expected:
                problems.append(f"{theirs_name} is {found.shape}, expected {expected}")
                continue
            if leaf.name not in ours:  # only now: a config may claim shapes that no memory holds
                ours[leaf.name] = np.zeros(leaf.shape, np.float32)
            if is_stack:
                ours[leaf.name][i] = found
            else:
                ours[leaf.name][: len(found)] = found
    problems += [f"{extra} is not an array of this model" for extra in sorted(set(theirs) - used)]
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        listed = "".join(f"\n  - {problem}" for problem in [*problems[:12], *more])
        raise UserError(f"the arrays of {name} do not fit its config:{listed}")
    return ours


def to_huggingface(
    ours: Mapping[str, np.ndarray], cfg: ModelConfig, rows: int | None = None
) -> dict[str, np.ndarray]:
    """Arrays under Hugging Face's names, one a layer; the vocabulary has `rows`, or `n_vocab`."""
    theirs = {}
    for leaf in published(cfg):
        array = np.asarray(ours[leaf.name])
        if leaf.name.startswith(STACK):
            theirs |= {leaf.huggingface.format(i): layer for i, layer in enumerate(array)}
        else:
            # only the vocabulary is padded, and only its table and its head have that dimension
            kept = rows if leaf.padding and rows is not None else leaf.published_shape[0]
            theirs[leaf.huggingface] = array[:kept]
    return theirs


def published(cfg: ModelConfig) -> list[Leaf]:
    """The leaves that other programs have: all but the classification head and adapters."""
    return [leaf for leaf in leaves(cfg) if leaf.huggingface]


def description(weights: Weights) -> list[str]:
    """What a model is, in lines like those at the start of a training."""
    model = weights.model
    switches = [
        f"{model.norm}-norm",
        model.activation,
        "tied head" if model.tied_head else "untied head",
        "biases" if model.bias else "no biases",
    ]
    return [
        f"from       {weights.source}",
        f"model      {parameter_count(model):,} parameters: {model.n_layer} layers, "
        f"{model.n_head} heads, {model.n_embd} wide, context {model.n_ctx}, "
        f"{', '.join(switches)}",
        f"tokenizer  {weights.tokenizer.name}, {weights.tokenizer.n_vocab:,} ids",
    ]

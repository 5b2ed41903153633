"""A config that starts from a model: the shape and the tokenizer of the preset give way to the
model's.

Dropout, types, attention and memory stay the preset's, since they are settings of training. A
typed flag may change the context, because positions can be cut and added, the activation, which
some formats do not tell, and the scale of initial values, which are not used. It may change no
other dimension and no other switch.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from gptjax.base.errors import ConfigError
from gptjax.config import Config, ModelConfig
from gptjax.config.names import how_to_prepare_for
from gptjax.config.origins import SHAPE, as_words, flag_of
from gptjax.config.schema import CLASSIFY, INSTRUCT
from gptjax.conversion.shapes import Source
from gptjax.model.places import leaves
from gptjax.tokenizers.registry import NAMED, fingerprint, make_tokenizer

OWN = frozenset({"n_ctx", "activation", "scale_residual_init"})
"""Fields of the model that may be typed with other values than the model's."""
_SWITCHES = frozenset({"n_head", "norm", "final_norm"})  # they say how parameters are used


def fitted(config: Config, source: Source, typed: Collection[str]) -> Config:
    """The config with the shape and the tokenizer of `source`; `typed` names the fields to keep.

    Windows are no longer than the preset's, unless a longer context was typed; but examples that
    are padded to their own lengths may be as long as the model allows. Raises a
    `ConfigError` if typed flags ask for another shape, with a table of leaves, for other layers or
    for another tokenizer.
    """
    problems = [_misfit(config.model, source, typed)]
    if "data.tokenizer" in typed:
        problems.append(_other_tokenizer(config.data.tokenizer, source))
    if found := [problem for problem in problems if problem]:
        raise ConfigError(found)
    kept = {name for name in OWN if f"model.{name}" in typed}
    taken = {name: getattr(source.model, name) for name in SHAPE if name not in kept}
    model, train, data = replace(config.model, **taken), config.train, config.data
    if train.context is not None and "train.context" in typed and "n_ctx" not in kept:
        model = replace(model, n_ctx=max(model.n_ctx, train.context))
    elif "train.context" not in typed and "n_ctx" not in kept:
        is_packed = config.task == INSTRUCT and config.instruct.lengths == "pack"
        is_padded = config.task in (CLASSIFY, INSTRUCT) and not is_packed
        own = model.n_ctx if is_padded and train.context is None else config.context
        window = min(own, model.n_ctx)
        train = replace(train, context=None if window == model.n_ctx else window)
    if "model.unroll" not in typed:
        most = 1 if model.remat != "none" and model.unroll >= model.n_layer else model.n_layer
        model = replace(model, unroll=min(model.unroll, most))
    if "data.tokenizer" not in typed:
        data = replace(data, tokenizer=source.tokenizer_name)
    return replace(config, model=model, train=train, data=data)


def _misfit(asked: ModelConfig, source: Source, typed: Collection[str]) -> str | None:
    """The flags that ask for another shape, and the leaves that differ for it; None without any."""
    theirs = source.model
    other = {
        name: getattr(asked, name)
        for name in SHAPE
        if f"model.{name}" in typed and name not in OWN
        and getattr(asked, name) not in (None, getattr(theirs, name))
    }  # fmt: skip
    if not other:
        return None
    flags = [
        f"{flag_of(f'model.{name}')} {as_words(value)}, there {as_words(getattr(theirs, name))}"
        for name, value in other.items()
    ]
    how = "computes something else" if other.keys() <= _SWITCHES else "has another shape"
    lines = [f"the model of --train.init-from {source.name} {how} than typed:", *flags]
    if table := leaf_differences(theirs, replace(theirs, **other)):
        rows = [("leaf", "theirs", "yours"), *table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    lines.append("Leave these flags out: any config starts from any model, with that model's shape")
    return "\n    ".join(lines)


def _other_tokenizer(name: str | None, source: Source) -> str | None:
    """The reason why `data.tokenizer` cannot be `name`; None if it can."""
    theirs = source.tokenizer
    if name is None or name == theirs.name or _is_same(name, source):
        return None
    return (
        f"--data.tokenizer {name} is another tokenizer than that of --train.init-from "
        f"{source.name} ({theirs.name}, {theirs.n_vocab:,} ids): leave it out, and "
        f"{how_to_prepare_for(source.name, source.tokenizer_name)}"
    )


def _is_same(name: str, source: Source) -> bool:
    """Whether a tokenizer can be the model's under another name."""
    if name == "chars" or name.startswith("bpe:"):  # made from a text: its data tell
        return source.tokenizer.name not in NAMED
    if name in NAMED and source.tokenizer.name in NAMED:
        return False
    return fingerprint(make_tokenizer(name)) == source.fingerprint


def leaf_differences(theirs: ModelConfig, yours: ModelConfig) -> list[tuple[str, str, str]]:
    """Every leaf whose shape differs: its name and both shapes, `none` where it is missing.

    >>> small = ModelConfig(n_layer=1, n_head=2, n_embd=8, n_ctx=16, n_vocab=100)
    >>> leaf_differences(small, dataclasses.replace(small, n_ctx=32))
    [('wpe/embedding', '16 x 8', '32 x 8')]
    """
    ours, others = ({leaf.name: leaf.shape for leaf in leaves(cfg)} for cfg in (yours, theirs))
    return [
        (name, in_words(others.get(name)), in_words(ours.get(name)))
        for name in {**others, **ours}
        if others.get(name) != ours.get(name)
    ]


def in_words(shape: tuple[int, ...] | None) -> str:
    """A shape as people write it.

    >>> in_words((2, 32, 96))
    '2 x 32 x 96'
    """
    return "none" if shape is None else " x ".join(map(str, shape))


def changed_settings(theirs: ModelConfig, yours: ModelConfig) -> list[str]:
    """The settings of training that differ from those that the model was trained with, in words.

    >>> small = ModelConfig(dtype="float32", n_vocab=100)
    >>> changed_settings(small, dataclasses.replace(small, embd_pdrop=0.1))
    ['embd_pdrop 0.0 -> 0.1']
    """
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in SHAPE]
    pairs: list[tuple[str, Any, Any]] = [(n, getattr(theirs, n), getattr(yours, n)) for n in names]
    return [f"{name} {as_words(a)} -> {as_words(b)}" for name, a, b in pairs if a != b]

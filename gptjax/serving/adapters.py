"""Low-rank adapters to serve beside the model that they were trained on."""

from dataclasses import dataclass

import jax
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree, as_tree, named_leaves
from gptjax.config import Config
from gptjax.conversion.opening import load_run
from gptjax.generation.loaded import LoadedRun
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import fingerprint

DECIDING = (
    "n_layer", "n_head", "n_embd", "n_ctx", "n_vocab", "norm", "final_norm", "qkv_bias", "bias",
    "tied_head", "activation", "n_special", "n_classes",
)  # fmt: skip
"""The fields of a model that decide what its parameters compute."""


@dataclass(frozen=True)
class ServedAdapters:
    """Adapters without the model that they belong to."""

    config: Config
    """The config of their run."""
    adapters: Tree
    """The leaves lora_A and lora_B of the model's tree."""
    tokenizer: Tokenizer


def load_beside(path: str, base: LoadedRun, dtype: str) -> ServedAdapters:
    """Load the adapters of a run and let go of the rest, which must be the parameters of `base`.

    Raises `UserError` for a run without adapters, and for adapters of another model: they would
    mean nothing there.
    """
    run = load_run(path, dtype=dtype)
    if not run.config.model.lora_rank:
        raise UserError(
            f"--adapters {path} is not a run of adapters: expected one that was trained with "
            "--model.lora-rank. Serve it by itself with --run"
        )
    adapters, own = {}, {}
    for name, leaf in named_leaves(run.params).items():
        (adapters if name.endswith(("/lora_A", "/lora_B")) else own)[name] = leaf
    if difference := _difference(run, own, base):
        raise UserError(
            f"--adapters {path} belongs to another model than --run, {base.origin}: {difference}. "
            f"It was trained from {run.config.train.init_from}"
        )
    return ServedAdapters(run.config, as_tree(adapters), run.tokenizer)


def _difference(run: LoadedRun, own: dict[str, jax.Array], base: LoadedRun) -> str | None:
    """How the model under adapters differs from `base`, if it does."""
    for name in DECIDING:
        here, there = getattr(run.config.model, name), getattr(base.config.model, name)
        if here != there:
            return f"its model.{name} is {here}, not {there}"
    if fingerprint(run.tokenizer) != fingerprint(base.tokenizer):
        return "it has another tokenizer"
    theirs = named_leaves(base.params)
    for name, leaf in own.items():
        if not np.array_equal(leaf, theirs[name]):
            return f"the values of {name} are not the same"
    return None

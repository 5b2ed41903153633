"""Low-rank adapters to serve beside the model that they were trained on."""

from dataclasses import dataclass

import jax
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree, named_leaves
from gptjax.config import Config, ModelConfig
from gptjax.conversion.finding import find_model
from gptjax.conversion.opening import load_adapted
from gptjax.generation.loaded import LoadedRun
from gptjax.runs.directory import RunDir
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


def load_beside(path: str, base: LoadedRun) -> ServedAdapters:
    """Load the adapters of a run and let go of their model, which must be that of `base`.

    `base` may have another type of parameters than float32. Raises `UserError` for a run without
    adapters, and for adapters of another model: they would mean nothing there.
    """
    found = load_adapted(path)
    run_dir = RunDir(find_model(path).path)
    config, tokenizer = run_dir.read_config(), run_dir.read_tokenizer()
    difference = (
        _other_field(found.cfg, base.config.model)
        or (fingerprint(tokenizer) != fingerprint(base.tokenizer) and "it has another tokenizer")
        or _other_values(found.base, base)
    )
    if difference:
        raise UserError(
            f"--adapters {path} was trained on another model ({found.base.origin}) than --run "
            f"({base.origin}): {difference}"
        )
    return ServedAdapters(config, found.adapters, tokenizer)


def _other_field(cfg: ModelConfig, base: ModelConfig) -> str | None:
    for name in DECIDING:
        here, there = getattr(cfg, name), getattr(base, name)
        if here != there and name == "n_ctx":
            return (
                f"its model.n_ctx is {here}, not {there}. Train the adapters again without "
                "--model.n-ctx (--train.context shortens their examples alone), or serve them as a "
                "model of their own with --run"
            )
        if here != there:
            return f"its model.{name} is {here}, not {there}"
    return None


def _other_values(found: LoadedRun, base: LoadedRun) -> str | None:
    theirs = named_leaves(found.params)
    for name, leaf in named_leaves(base.params).items():
        if not np.array_equal(leaf, jax.numpy.asarray(theirs[name], leaf.dtype)):
            return f"the values of {name} are not the same"
    return None

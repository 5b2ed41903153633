"""A small run of adapters on a small base, written without training."""

import dataclasses
from pathlib import Path

import numpy as np
from prepared_models import random_weights

from gptjax.base.tree import as_tree
from gptjax.config import ModelConfig
from gptjax.config.schema import CLASSIFY, PRETRAIN
from gptjax.conversion.finding import find_model
from gptjax.conversion.opening import load_run
from gptjax.conversion.pinned import chosen, pin
from gptjax.conversion.run_directory import config_for, write_run, write_step_0
from gptjax.model.gpt import GPT
from gptjax.model.places import leaves
from gptjax.model.trainable import adapter_names
from gptjax.runs.naming import ADAPTERS, AVERAGED
from gptjax.tokenizers.plain import ByteTokenizer

CFG = ModelConfig(
    n_layer=2, n_head=2, n_embd=8, n_ctx=32, n_vocab=257, dtype="float32",
    lora_rank=3, lora_alpha=5.0, lora_targets=("c_attn", "c_proj", "c_fc"),
)  # fmt: skip


def drawn_adapters(cfg: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """The leaves of a checkpoint of adapters, none of them zero."""
    chance, names = np.random.default_rng(seed), adapter_names(cfg)
    own = [leaf for leaf in leaves(cfg) if leaf.name in names]
    return {leaf.name: chance.normal(0, 0.5, leaf.shape).astype(np.float32) for leaf in own}


def adapted_run(
    path: Path, cfg: ModelConfig = CFG, seed: int = 1, average: int | None = None
) -> Path:
    """A run of adapters in `path`, beside its base, which is written unless it is there.

    `average` is the seed of a running average of the adapters; None keeps none.
    """
    base, run = path / "base", path / f"adapters{seed}"
    if not base.exists():
        plain = dataclasses.replace(cfg, lora_rank=0, n_classes=0, n_special=0)
        write_run(random_weights(plain), base)
    run.mkdir()
    pin(chosen(find_model(base)), run)
    config = config_for(cfg, ByteTokenizer(), CLASSIFY if cfg.n_classes else PRETRAIN)
    items = {ADAPTERS: as_tree(drawn_adapters(cfg, seed))}
    if average is not None:
        items[AVERAGED] = as_tree(drawn_adapters(cfg, average))
    write_step_0(run, config, ByteTokenizer(), items, "a test")
    return run


def logits_of(run: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """The logits of whatever `load_run` gives."""
    loaded = load_run(run)
    params = {name: x for name, x in loaded.params.items() if name != "clf"}
    return np.asarray(GPT(loaded.config.model).apply({"params": params}, tokens_BT))

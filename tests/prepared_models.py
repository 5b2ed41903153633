"""Small random models in the formats of others, written without their libraries."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gptjax.config import ModelConfig
from gptjax.conversion.llmc import write_llmc
from gptjax.conversion.weights import Weights, to_huggingface
from gptjax.model.places import leaves
from gptjax.tokenizers.plain import ByteTokenizer

CFG = ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=32, n_vocab=257, dtype="float32")


def random_weights(cfg: ModelConfig = CFG, seed: int = 0) -> Weights:
    """A model over bytes with random parameters, and zeros where rows only pad."""
    chance, arrays = np.random.default_rng(seed), {}
    for leaf in leaves(cfg):
        arrays[leaf.name] = chance.normal(0, 0.2, leaf.shape).astype(np.float32)
        arrays[leaf.name][len(arrays[leaf.name]) - leaf.padding :] = 0
    return Weights(cfg, arrays, ByteTokenizer(), "a test")


def write_huggingface_model(path: Path, cfg: ModelConfig = CFG, **settings: object) -> Path:
    """A directory as `save_pretrained` writes it; `settings` change config.json."""
    path.mkdir(parents=True, exist_ok=True)
    weights = random_weights(cfg)
    table = {
        "model_type": "gpt2" if cfg.norm == "pre" else "openai-gpt", "vocab_size": cfg.n_vocab,
        "n_layer": cfg.n_layer, "n_head": cfg.n_head, "n_embd": cfg.n_embd,
        "n_positions": cfg.n_ctx, "tie_word_embeddings": cfg.tied_head,
        "embd_pdrop": cfg.embd_pdrop, "attn_pdrop": cfg.attn_pdrop,
        "resid_pdrop": cfg.resid_pdrop,
    }  # fmt: skip
    arrays = to_huggingface(weights.arrays, cfg)
    save_file(arrays, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(table | settings))
    (path / "tokenizer.json").write_text(weights.tokenizer.to_json())
    return path


def write_llmc_model(path: Path) -> Path:
    """A model of llm.c in a directory."""
    path.mkdir(parents=True, exist_ok=True)
    write_llmc(random_weights(), path)
    return path

"""Make gpt2_tiny.npz: a small random GPT-2 of Hugging Face, its logits, loss and gradients.

    python tests/golden/make_gpt2_tiny.py

Parameters are float32 draws of NumPy's, none of them trivially 0 or 1; the reference runs in
float64, so its own rounding is far below that of what is compared with it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 96, "n_positions": 16}


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Set every parameter to 0.2 z, norm weights to 1 + 0.2 z; return them by name."""
    drawn = {}
    for name, parameter in model.named_parameters():
        is_norm_weight = ".ln_" in name and name.endswith("weight")
        noise = 0.2 * rng.standard_normal(parameter.shape)
        drawn[name] = (is_norm_weight + noise).astype(np.float32)
        parameter.data = torch.from_numpy(drawn[name]).to(parameter.dtype)
    return drawn


def run(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Logits, mean next-token loss and its gradients for random parameters and tokens."""
    rng = np.random.default_rng(seed)
    model = model.double().eval()
    parameters = randomise(model, rng)
    shape = (2, model.config.n_positions)
    tokens_BT = rng.integers(0, model.config.vocab_size, shape, dtype=np.int32)
    logits_BTV = model(torch.from_numpy(tokens_BT).long()).logits
    targets = torch.from_numpy(tokens_BT[:, 1:]).long().flatten()
    loss = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets)
    loss.backward()
    numbers = {"tokens": tokens_BT, "logits": logits_BTV.detach().numpy(), "loss": loss.item()}
    numbers |= {f"parameter/{name}": array for name, array in parameters.items()}
    numbers |= {f"gradient/{name}": p.grad.numpy() for name, p in model.named_parameters()}
    return {
        k: np.asarray(v, None if k == "tokens" else np.float32) for k, v in sorted(numbers.items())
    }


def gpt2(seed: int, **shape: int) -> dict[str, np.ndarray]:
    """`run` for a GPT-2 of this shape."""
    config = GPT2Config(bos_token_id=None, eos_token_id=None, **shape)
    return run(GPT2LMHeadModel(config), seed)


def gpt1(seed: int, **shape: int) -> dict[str, np.ndarray]:
    """`run` for a GPT-1 of this shape."""
    return run(OpenAIGPTLMHeadModel(OpenAIGPTConfig(**shape)), seed)


if __name__ == "__main__":
    path = Path(__file__).with_name("gpt2_tiny.npz")
    np.savez_compressed(path, shape=json.dumps(SHAPE), **gpt2(0, **SHAPE))
    print(f"{path}: {path.stat().st_size} bytes")

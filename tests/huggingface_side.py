"""GPT-2 and GPT-1 of Hugging Face with random float32 weights, and a step of torch's AdamW.

Callers skip where torch or transformers is missing.
"""

from typing import Any, NamedTuple

import numpy as np

from gptjax.config import ModelConfig, OptimConfig

ODD = {"n_layer": 3, "n_head": 5, "n_embd": 40, "vocab_size": 301, "n_positions": 23}
PUBLISHED = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024},
    "gpt1": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 40478, "n_positions": 512},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt1": {"norm": "post", "final_norm": False, "scale_residual_init": False},
}


class TorchNumbers(NamedTuple):
    """What torch computes from one batch; arrays under Hugging Face's names."""

    before: dict[str, np.ndarray]
    logits_BTV: np.ndarray
    loss: float
    """Mean over all targets, in nats."""
    gradients: dict[str, np.ndarray]
    """Before clipping."""


def config_of(kind: str, shape: dict[str, int], **switches: Any) -> ModelConfig:
    """Our float32 config of Hugging Face's shape."""
    return ModelConfig(
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        n_ctx=shape["n_positions"],
        n_vocab=shape["vocab_size"],
        dtype="float32",
        **SWITCHES[kind],
        **switches,
    )


def some_tokens(shape: dict[str, int], rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Random ids [rows, length], the highest among them."""
    rng = np.random.default_rng([seed, rows, length])
    tokens = rng.integers(0, shape["vocab_size"], (rows, length), dtype=np.int32)
    tokens[0, 0] = shape["vocab_size"] - 1
    return tokens


def torch_numbers(kind: str, shape: dict[str, int], tokens_BT: np.ndarray) -> TorchNumbers:
    """Predict `tokens_BT[:, 1:]`, all in float32; no parameter is trivially 0 or 1."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **shape))
    else:
        model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**shape))
    model.eval()  # no dropout
    rng, std, before = np.random.default_rng(0), shape["n_embd"] ** -0.5, {}
    for name, parameter in model.named_parameters():
        noise = rng.standard_normal(parameter.shape, np.float32) * np.float32(std)
        is_scale = ".ln_" in name and name.endswith("weight")
        before[name] = noise + np.float32(is_scale)
        parameter.data = torch.from_numpy(before[name])
    tokens = torch.from_numpy(tokens_BT).long()
    logits_BTV = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return TorchNumbers(before, logits_BTV.detach().numpy(), loss.item(), gradients)


def torch_adamw(
    before: dict[str, np.ndarray], gradients: dict[str, np.ndarray], optim: OptimConfig
) -> dict[str, np.ndarray]:
    """The parameters after clipping and one step of AdamW at `optim.peak_lr`.

    Whatever has one dimension in Hugging Face's model, biases and norms, is not decayed.
    """
    import torch

    parameters = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in before.items()}
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(gradients[name])
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1]},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (optim.beta1, optim.beta2)
    adamw = torch.optim.AdamW(groups, optim.peak_lr, betas, optim.eps, optim.weight_decay)
    torch.nn.utils.clip_grad_norm_(parameters.values(), optim.clip_norm or float("inf"))
    adamw.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}

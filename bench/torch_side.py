"""torch's side: Hugging Face's GPT-2 as its users run it, and a plain module that wastes nothing.

Each function builds a side for `worker.py`: it returns a round and a dict of facts. torch runs in a
process without gptjax, eager, on all cores. Needs the `reference` extra.
"""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
from harness import Figures, Round, Skipped, cores
from shapes import Shape

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    raise Skipped("torch is not installed: pip install -e '.[reference]'") from error

INIT_STD = 0.02


class PlainBlock(nn.Module):
    """Pre-norm attention and MLP with residual sums: [B, T, D] to [B, T, D]."""

    def __init__(self, shape: Shape, bias: bool):
        super().__init__()
        width = shape.n_embd
        self.n_head = shape.n_head
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn_proj = nn.Linear(width, width, bias=bias)
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.mlp_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, then bend."""
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.n_head, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 in torch's own fused pieces, head tied: token ids [B, T] to logits [B, T, V]."""

    def __init__(self, shape: Shape, bias: bool = True):
        super().__init__()
        self.wte = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_ctx, shape.n_embd)
        self.blocks = nn.ModuleList(PlainBlock(shape, bias) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                is_residual = name.endswith("_proj.weight")
                scale = (2 * shape.n_layer) ** -0.5 if is_residual else 1.0
                nn.init.normal_(parameter, std=INIT_STD * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Next-token logits."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def hugging_face(shape: Shape) -> Any:
    """GPT2LMHeadModel of this shape with its default attention and no dropout."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise Skipped("transformers is not installed: pip install -e '.[reference]'") from error
    config = GPT2Config(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_positions=shape.n_ctx,
        vocab_size=shape.n_vocab,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def adamw(model: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW, not fused, that decays matrices by 0.1 and nothing else."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=False)


def train(shape: dict, updates: int, model: str, warm: int = 3) -> tuple[Round, dict]:
    """`updates` updates a round of `hugging_face` or `plain`; bfloat16 is torch's autocast."""
    sizes = Shape(**shape)
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    net = (hugging_face(sizes) if model == "hugging_face" else PlainGPT(sizes)).train()
    optimizer = adamw(net, 6e-4, (0.9, 0.95))
    is_half = sizes.dtype == "bfloat16"
    rng = np.random.default_rng(0)
    size = (sizes.micro_steps, sizes.batch, sizes.n_ctx + 1)
    tokens_ABT = torch.from_numpy(rng.integers(0, sizes.n_vocab, size))

    def update() -> float:
        total = 0.0
        for tokens in tokens_ABT:
            with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
                logits = net(tokens[:, :-1])
                logits = logits if isinstance(logits, torch.Tensor) else logits.logits
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            (loss / sizes.micro_steps).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def one_round(count: int = updates) -> Figures:
        started = time.perf_counter()
        for _ in range(count):
            update()
        return {"seconds": time.perf_counter() - started}

    one_round(warm)
    return one_round, {"parameters": sum(p.numel() for p in net.parameters())}


def decode(shape: dict, prompt: int, new_tokens: int, cache: bool) -> tuple[Round, dict]:
    """Greedy text by Hugging Face's generate, with its cache of keys and values or without."""
    sizes = Shape(**shape)
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    net = hugging_face(sizes).eval()
    start = torch.from_numpy(np.random.default_rng(0).integers(0, sizes.n_vocab, (1, prompt)))
    mask = torch.ones_like(start)

    def one_round() -> Figures:
        started = time.perf_counter()
        with torch.inference_mode():
            tokens = net.generate(
                start,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                use_cache=cache,
                pad_token_id=0,
            )
        assert tokens.shape[1] == prompt + new_tokens
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {}

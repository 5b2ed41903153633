"""nanoGPT's network as its checkpoints describe it, in torch, and the checkpoint that it saves.

Its names: `transformer` holds the tables `wte` and `wpe`, the blocks `h` with `ln_1 attn ln_2 mlp`,
and `ln_f`; the head is `lm_head`, and its weight is the table. `bias` switches every bias.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Args:
    """What nanoGPT calls `model_args`."""

    n_layer: int = 3
    n_head: int = 5
    n_embd: int = 40
    block_size: int = 24
    bias: bool = True
    vocab_size: int = 65
    dropout: float = 0.0


EXACT, TANH = "none", "tanh"  # forms of GELU: nanoGPT's and llm.c's


class Norm(nn.Module):
    """Layer norm whose bias may be absent."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal attention with one projection for query, key and value."""

    def __init__(self, args: Args):
        super().__init__()
        self.c_attn = nn.Linear(args.n_embd, 3 * args.n_embd, bias=args.bias)
        self.c_proj = nn.Linear(args.n_embd, args.n_embd, bias=args.bias)
        self.heads = args.n_head

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a sum."""

    def __init__(self, args: Args, gelu: str):
        super().__init__()
        self.gelu = gelu
        self.ln_1, self.attn = Norm(args.n_embd, args.bias), Attention(args)
        self.ln_2 = Norm(args.n_embd, args.bias)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(args.n_embd, 4 * args.n_embd, bias=args.bias),
                "c_proj": nn.Linear(4 * args.n_embd, args.n_embd, bias=args.bias),
            }
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=self.gelu)
        return x + self.mlp["c_proj"](hidden)


class NanoGPT(nn.Module):
    """The whole network; ids [B, T] to logits [B, T, V]. Every parameter is random."""

    def __init__(self, args: Args, gelu: str = EXACT):
        super().__init__()
        self.args = args
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(args.vocab_size, args.n_embd),
                "wpe": nn.Embedding(args.block_size, args.n_embd),
                "h": nn.ModuleList(Block(args, gelu) for _ in range(args.n_layer)),
                "ln_f": Norm(args.n_embd, args.bias),
            }
        )
        self.lm_head = nn.Linear(args.n_embd, args.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
                parameter.normal_(centre, 0.2, generator=generator)

    def forward(self, ids):
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))

    def checkpoint(self, prefix: str = "", **changes: Any) -> dict[str, Any]:
        """The dictionary that nanoGPT's train.py saves, after one update so that it has moments."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.0)
        self(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
        optimizer.step()
        return {
            "model": {prefix + name: tensor for name, tensor in self.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "model_args": asdict(self.args),
            "iter_num": 2000,
            "best_val_loss": torch.tensor(1.4697),
            "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
            **changes,
        }

    def save(self, path: Path, prefix: str = "", **changes: Any) -> Path:
        """Write `checkpoint` to a file."""
        torch.save(self.checkpoint(prefix, **changes), path)
        return path

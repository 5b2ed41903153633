"""Make tiny_losses.json: ten losses of config `tiny`, by a loop of plain torch.

    python tests/golden/make_tiny_losses.py

Nothing of gptjax computes here: model, loss, clipping, AdamW and schedule are of torch or written
out, in float64. Initial weights are drawn by gptjax, tokens are read from the data it prepared.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm

GOLDEN = Path(__file__).with_name("tiny_losses.json")
LAYERS, HEADS, CONTEXT, VOCABULARY, ROWS, SEED = 2, 2, 64, 257, 8, 1337
STEPS, WARM_UP, PEAK, FINAL = 10, 3, 3e-3, 3e-4
HEADER = 1024  # bytes of a shard before its uint16 tokens
Weights = dict[str, torch.Tensor]


def batches(directory: Path) -> list[torch.Tensor]:
    """Tokens [ROWS, CONTEXT + 1] of each step: the windows of all shards, shuffled by Grain."""
    shards = sorted(directory.glob("train*.bin"))
    tokens = np.concatenate([np.fromfile(path, "<u2", offset=HEADER) for path in shards])
    windows = (len(tokens) - 1) // CONTEXT
    order = grain.MapDataset.range(windows).seed(SEED).shuffle().repeat()
    rows = [tokens[order[i] * CONTEXT :][: CONTEXT + 1] for i in range(STEPS * ROWS)]
    return list(torch.from_numpy(np.stack(rows).astype(np.int64)).split(ROWS))


def logits(w: Weights, tokens_BT: torch.Tensor) -> torch.Tensor:
    """GPT-2 (Radford et al. 2019): [B, T] to [B, T, V]."""
    batch, time = tokens_BT.shape
    x = w["wte/embedding"][tokens_BT] + w["wpe/embedding"][:time]
    for i in range(LAYERS):

        def dense(x: torch.Tensor, name: str, i: int = i) -> torch.Tensor:
            return x @ w[f"h/{name}/kernel"][i] + w[f"h/{name}/bias"][i]

        def norm(x: torch.Tensor, name: str, i: int = i) -> torch.Tensor:
            return layer_norm(x, x.shape[-1:], w[f"h/{name}/scale"][i], w[f"h/{name}/bias"][i])

        heads = dense(norm(x, "ln_1"), "attn/c_attn").view(batch, time, 3, HEADS, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        attended = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + dense(attended.transpose(1, 2).reshape(batch, time, -1), "attn/c_proj")
        x = x + dense(gelu(dense(norm(x, "ln_2"), "mlp/c_fc"), approximate="tanh"), "mlp/c_proj")
    x = layer_norm(x, x.shape[-1:], w["ln_f/scale"], w["ln_f/bias"])
    return x @ w["wte/embedding"][:VOCABULARY].T


def learning_rate(step: int) -> float:
    """Of step `step`, from 0: a straight line up, half a cosine down."""
    if step < WARM_UP:
        return PEAK * (step + 1) / (WARM_UP + 1)
    turned = math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))
    return FINAL + (PEAK - FINAL) * (1 + turned) / 2


def losses(directory: Path, weights: dict[str, np.ndarray]) -> list[float]:
    """Mean loss of each step's tokens before it, trained on a prepared directory."""
    w = {k: torch.tensor(np.asarray(v), dtype=torch.float64) for k, v in weights.items()}
    w = {k: v.requires_grad_() for k, v in w.items()}
    matrices = [v for k, v in w.items() if k.endswith(("kernel", "embedding"))]
    others = [v for k, v in w.items() if k.endswith(("bias", "scale"))]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    found = []
    for step, tokens in enumerate(batches(directory)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()
        targets = tokens[:, 1:].flatten()
        loss = cross_entropy(logits(w, tokens[:, :-1]).flatten(0, 1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def main(prepare: Callable[[Path], Path], draw: Callable[[], dict[str, np.ndarray]]) -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as directory:
        found = losses(prepare(Path(directory)), draw())
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{GOLDEN}: {found}")


if __name__ == "__main__":
    tests = Path(__file__).parent.parent
    sys.path[:0] = [str(tests), str(tests / "training")]
    from test_golden_losses import initial_weights, prepared_text

    main(prepared_text, initial_weights)

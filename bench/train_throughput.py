"""Training throughput beside Hugging Face's torch GPT-2 of the same shape, in the same process.

    python bench/train_throughput.py
    python bench/train_throughput.py --n-layer 12 --n-head 12 --n-embd 768 --n-ctx 256 \\
        --n-vocab 50257 --batch 4 --updates 1

The default shape is nanoGPT's CPU recipe: 4 layers, 4 heads, 128 wide, context 64, batch 12. Both
sides do forward, backward, clipping and AdamW in float32 on the same random tokens, in turns, round
by round, so that a machine that changes speed changes it for both. A round's rate is its tokens
over its wall time; the figures are medians over rounds. Needs the `reference` extra.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from gptjax.config import ModelConfig, OptimConfig
from gptjax.training.mesh import make_mesh, put_rows, replicated
from gptjax.training.optimizer import learning_rate_schedule, make_optimizer
from gptjax.training.state import initial_state
from gptjax.training.step import make_train_step
from gptjax.training.tasks import TASKS

Update = Callable[[], float]  # one training update; returns the loss


@dataclass(frozen=True)
class Shape:
    """What is trained, and for how long."""

    n_layer: int = 4
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads."""
    n_embd: int = 128
    """Width."""
    n_ctx: int = 64
    """Context, in tokens."""
    n_vocab: int = 65
    """Vocabulary, in tokens."""
    batch: int = 12
    """Sequences an update."""
    rounds: int = 9
    """Rounds of each side."""
    updates: int = 20
    """Updates a round."""
    out: Path | None = None
    """JSON file to write the figures to."""


def gptjax_update(shape: Shape, tokens_BT: np.ndarray) -> Update:
    """Our update, parameters drawn by us."""
    model = ModelConfig(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_ctx=shape.n_ctx,
        n_vocab=shape.n_vocab,
        dtype="float32",
        unroll=shape.n_layer,
    )
    optim, mesh = OptimConfig(warmup_steps=10), make_mesh(1)
    optimizer = make_optimizer(optim, 10_000)
    state = initial_state(model, optimizer, 0, replicated(mesh))
    schedule = learning_rate_schedule(optim, 10_000)
    step = make_train_step(TASKS["lm"](model), optimizer, schedule, mesh, 1, dropout=False)
    weights = np.ones(tokens_BT[:, 1:].shape, np.float32)
    batch = put_rows(mesh, {"tokens": tokens_BT[None], "weights": weights[None]}, axis=1)
    key = jax.device_put(jax.random.key(0), replicated(mesh))

    def update() -> float:
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return update


def torch_update(shape: Shape, tokens_BT: np.ndarray) -> Update:
    """Hugging Face's GPT-2, eager, as its users train it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
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
    model = GPT2LMHeadModel(config).train()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
    tokens = torch.from_numpy(tokens_BT.astype(np.int64))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def update() -> float:
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return update


def main(shape: Shape) -> None:
    """Time both sides in turns and print the medians and their ratio."""
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, shape.n_vocab, (shape.batch, shape.n_ctx + 1), dtype=np.int32)
    sides = {"torch": torch_update(shape, tokens_BT), "gptjax": gptjax_update(shape, tokens_BT)}
    tokens = shape.batch * shape.n_ctx * shape.updates
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for update in sides.values():
        for _ in range(3):
            update()
    for _ in range(shape.rounds):
        for name, update in sides.items():
            started = time.perf_counter()
            for _ in range(shape.updates):
                update()
            rates[name].append(tokens / (time.perf_counter() - started))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["gptjax"], rates["torch"], strict=True)]
    for name, values in rates.items():
        print(
            f"{name:7} {medians[name]:9,.0f} tokens/s  ({min(values):,.0f} to {max(values):,.0f})"
        )
    ratio = statistics.median(ratios)
    print(f"ratio   {ratio:9.2f} gptjax over torch ({min(ratios):.2f} to {max(ratios):.2f})")
    if shape.out is not None:
        machine = {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
        figures = {
            "shape": {k: v for k, v in asdict(shape).items() if k != "out"},
            "machine": {**machine, "jax": jax.__version__},
            "tokens_per_second": rates,
            "ratio": ratio,
        }
        shape.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Shape, description=__doc__))

"""nanoGPT's CPU recipe for characters of Shakespeare as a plain torch loop: the other side's run.

    python bench/recipe_torch.py --text tinyshakespeare.txt --out runs/torch

The whole process is what is timed: imports, data, training, evaluation on 20 random batches of each
split every 250 updates, and a checkpoint whenever the validation loss is the best so far and at the
end. Prints one line of JSON: the final validation loss over all windows of the validation text.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from harness import cores
from shapes import SMALL, Shape
from torch.nn import functional as F
from torch_side import PlainGPT, adamw

EVAL_BATCHES = 20


@dataclass(frozen=True)
class Command:
    """The recipe; every number of it is fixed but its length."""

    text: Path
    """UTF-8 text; its last tenth is for validation."""
    out: Path
    """Directory for the checkpoint."""
    updates: int = 2000
    """Updates in all."""
    eval_every: int = 250
    """Updates between evaluations."""


def learning_rate(update: int, updates: int) -> float:
    """1e-3 after 100 updates of warm-up, then a cosine to 1e-4."""
    warmup, peak, final = 100, 1e-3, 1e-4
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    progress = (update - warmup) / max(1, updates - warmup)
    return final + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (peak - final)


@torch.no_grad()
def whole_loss(net: torch.nn.Module, tokens: np.ndarray, shape: Shape) -> float:
    """Mean loss in nats over every window of `tokens`, one after the other."""
    count = (len(tokens) - 1) // shape.n_ctx
    total = 0.0
    for start in range(0, count, 64):
        chosen = range(start, min(start + 64, count))
        windows = [tokens[i * shape.n_ctx : (i + 1) * shape.n_ctx + 1] for i in chosen]
        rows = torch.from_numpy(np.stack(windows).astype(np.int64))
        logits = net(rows[:, :-1])
        total += F.cross_entropy(
            logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (count * shape.n_ctx)


def main(command: Command) -> None:
    """Train as the recipe says."""
    torch.manual_seed(1337)
    torch.set_num_threads(cores())
    text = command.text.read_text()
    characters = sorted(set(text))
    ids = {c: i for i, c in enumerate(characters)}
    tokens = np.array([ids[c] for c in text], dtype=np.uint16)
    cut = int(0.9 * len(tokens))
    splits = {"train": tokens[:cut], "val": tokens[cut:]}
    shape = replace(SMALL, n_vocab=len(characters))
    net = PlainGPT(shape, bias=False)
    optimizer = adamw(net, 1e-3, (0.9, 0.99))
    command.out.mkdir(parents=True, exist_ok=True)

    def batch(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        data = splits[split]
        starts = torch.randint(len(data) - shape.n_ctx, (shape.batch,)).tolist()
        rows = np.stack([data[s : s + shape.n_ctx + 1].astype(np.int64) for s in starts])
        whole = torch.from_numpy(rows)
        return whole[:, :-1], whole[:, 1:]

    def loss_of(split: str) -> torch.Tensor:
        inputs, targets = batch(split)
        return F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten())

    def save(update: int, loss: float) -> None:
        content = {
            "model": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "update": update,
            "val_loss": loss,
        }
        torch.save(content, command.out / "checkpoint.pt")

    best = math.inf
    for update in range(command.updates + 1):
        last = update == command.updates
        if last or (update and update % command.eval_every == 0):
            with torch.no_grad():
                losses = {
                    split: sum(loss_of(split).item() for _ in range(EVAL_BATCHES)) / EVAL_BATCHES
                    for split in splits
                }
            if last or losses["val"] < best:
                best = min(best, losses["val"])
                save(update, losses["val"])
        if last:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, command.updates)
        loss = loss_of("train")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # every loss is logged, on the other side as here
    # recipe.py stops its clock at this line
    print("done", flush=True)
    print(json.dumps({"val_loss": whole_loss(net, splits["val"], shape)}))


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))

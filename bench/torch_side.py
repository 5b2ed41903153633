"""torch's sides: Hugging Face's GPT-2 as its users run it, and a plain, efficient module.

Each function builds a side for `worker.py`: it returns a round and a dict of facts. torch runs in a
process without gptjax, eager, on all cores. Needs the `reference` extra.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figures, Round, Skipped, cores
from shapes import SMALL, Shape

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
        """Add the attention's output, then the MLP's."""
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


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with decay 0.1 for matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def train(shape: dict, steps: int, model: str, warm: int = 3) -> tuple[Round, dict]:
    """`steps` steps a round of `hugging_face` or `plain`; bfloat16 is torch's autocast."""
    sizes = Shape(**shape)
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    net = (hugging_face(sizes) if model == "hugging_face" else PlainGPT(sizes)).train()
    optimizer = adamw(net, 6e-4, (0.9, 0.95))
    is_half = sizes.dtype == "bfloat16"
    rng = np.random.default_rng(0)
    size = (sizes.micro_steps, sizes.batch, sizes.n_ctx + 1)
    tokens_ABT = torch.from_numpy(rng.integers(0, sizes.n_vocab, size))

    def step() -> float:
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

    def one_round(count: int = steps) -> Figures:
        started = time.perf_counter()
        for _ in range(count):
            step()
        return {"seconds": time.perf_counter() - started}

    one_round(warm)
    return one_round, {"parameters": sum(p.numel() for p in net.parameters())}


def train_compiled(shape: dict, steps: int, warm: int = 3) -> tuple[Round, dict]:
    """`steps` steps a round of `plain` as torch's users train on a GPU.

    torch.compile, autocast to bfloat16, TF32 elsewhere, a fused AdamW, flash attention by
    `scaled_dot_product_attention`, the vocabulary padded to 128. The loss is fetched a step late.
    On a CPU nothing is compiled: that only shows that the side runs.
    """
    sizes = Shape(**shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    padded = replace(sizes, n_vocab=-(-sizes.n_vocab // 128) * 128)
    net = PlainGPT(padded).to(device).train()
    model: Any = torch.compile(net) if device == "cuda" else net
    optimizer = adamw(net, 6e-4, (0.9, 0.95), fused=device == "cuda")
    size = (sizes.micro_steps, sizes.batch, sizes.n_ctx + 1)
    numbers = np.random.default_rng(0).integers(0, sizes.n_vocab, size)
    tokens_ABT = torch.from_numpy(numbers).to(device)

    def step() -> torch.Tensor:
        total = torch.zeros((), device=device)
        for tokens in tokens_ABT:
            with torch.autocast(device, torch.bfloat16):
                logits = model(tokens[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            (loss / sizes.micro_steps).backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def one_round(count: int = steps) -> Figures:
        started, previous = time.perf_counter(), None
        for _ in range(count):
            total = step()
            if previous is not None:
                previous.item()
            previous = total
        assert previous is not None
        previous.item()
        if device == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - started}

    compiled = time.perf_counter()
    one_round(1)
    compiled = time.perf_counter() - compiled
    one_round(warm)
    facts = {"compile_seconds": compiled, "parameters": sum(p.numel() for p in net.parameters())}
    return one_round, facts


def decode(shape: dict, prompt: int, new_tokens: int) -> tuple[Round, dict]:
    """Greedy texts by Hugging Face's generate with its cache, as many as the shape's batch."""
    sizes = Shape(**shape)
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    net = hugging_face(sizes).eval()
    numbers = np.random.default_rng(0).integers(0, sizes.n_vocab, (sizes.batch, prompt))
    start = torch.from_numpy(numbers)
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
                use_cache=True,
                pad_token_id=0,
            )
        assert tokens.shape[1] == prompt + new_tokens
        return {"seconds": time.perf_counter() - started}

    one_round()
    return one_round, {}


def stream(megabytes: int) -> tuple[Round, dict]:
    """Memory that a sum reads in a second, with all cores."""
    torch.set_num_threads(cores())
    numbers = torch.ones(megabytes * 250_000)

    def one_round() -> Figures:
        started = time.perf_counter()
        for _ in range(5):
            numbers.sum()
        seconds = (time.perf_counter() - started) / 5
        return {"seconds": seconds, "bandwidth": 4 * len(numbers) / seconds}

    one_round()
    return one_round, {}


def recipe(text: str, out: str, steps: int, every: int) -> tuple[Round, dict]:
    """nanoGPT's CPU recipe for characters, trained while it is built; a round is its loss.

    Every `every` steps it evaluates 20 random batches of each split, and writes a checkpoint if the
    validation loss is the best so far, and at the end. The loss is over the whole last tenth.
    """
    torch.manual_seed(1337)
    torch.set_num_threads(cores())
    content = Path(text).read_text()
    ids = {c: i for i, c in enumerate(sorted(set(content)))}
    tokens = np.array([ids[c] for c in content], dtype=np.uint16)
    cut = int(0.9 * len(tokens))
    splits = {"train": tokens[:cut], "val": tokens[cut:]}
    shape = replace(SMALL, n_vocab=len(ids))
    net = PlainGPT(shape, bias=False)
    optimizer = adamw(net, 1e-3, (0.9, 0.99))
    Path(out).mkdir(parents=True, exist_ok=True)

    def loss_at(split: str, starts: list[int], reduction: str = "mean") -> torch.Tensor:
        rows = [splits[split][s : s + shape.n_ctx + 1].astype(np.int64) for s in starts]
        rows_BT = torch.from_numpy(np.stack(rows))
        logits, targets = net(rows_BT[:, :-1]), rows_BT[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    def loss_of(split: str) -> torch.Tensor:
        last = len(splits[split]) - shape.n_ctx
        return loss_at(split, torch.randint(last, (shape.batch,)).tolist())

    best = math.inf
    for step in range(steps + 1):
        last = step == steps
        if last or (step and step % every == 0):
            with torch.no_grad():
                losses = {s: sum(loss_of(s).item() for _ in range(20)) / 20 for s in splits}
            if last or losses["val"] < best:
                best = losses["val"]
                kept = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**kept, "step": step, "val_loss": best}, Path(out) / "checkpoint.pt")
        if last:
            break
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        loss = loss_of("train")
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # every loss is logged, on the other side as here

    @torch.no_grad()
    def whole_loss() -> Figures:
        count = (len(splits["val"]) - 1) // shape.n_ctx
        starts = [shape.n_ctx * i for i in range(count)]
        parts = [starts[i : i + 64] for i in range(0, count, 64)]
        total = sum(loss_at("val", part, "sum").item() for part in parts)
        return {"val_loss": total / (count * shape.n_ctx)}

    return whole_loss, {}


def _learning_rate(step: int, steps: int) -> float:
    """1e-3 after 100 steps of warm-up, then a cosine to 1e-4."""
    warmup, peak, final = 100, 1e-3, 1e-4
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return final + 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) * (peak - final)

"""GPT-2 small on three tenths of the tokens: Muon in place of AdamW.

Model, data, batch, betas and clipping are `gpt2_124m`'s. Muon updates the matrices of the blocks,
AdamW everything else, at one rate: Muon's updates have AdamW's size (Liu et al. 2025).
Rate and decay: a search in models of 4 layers, 64 wide, found 1.3e-2 and 0.1, and that twice the
width halves the rate, which makes 1.1e-3 here. The benchmark below has more. 2e-3 lies between the
two and is an assumption (docs/experiments.md); try 1e-3 and 4e-3 as well.
Schedule: 5% of warm-up, flat, a straight line to 0 over the last 70%, as in the search.
Length: 5,625 steps of 2^19 = 2.95e9 tokens, our own choice.
Expected: not known; nobody has trained this config. It will be held against modded-nanogpt's
benchmark of optimizers: steps of 2^19 tokens to 3.28 nats on FineWeb are 5,625 with Adam and 3,250
with tuned Muon, on another block (rotary embeddings, norms of queries and keys, squared ReLU, a
head of its own). That Muon's rates are 2.3e-3 to 4.5e-3 in our scaling, its decays 0.3 to 0.6.
0.23 hours on 8 H100 at 36% of the peak, by the planner, which leaves Newton-Schulz out; not
measured.

    python -m gptjax.plan --config gpt2_124m_muon --gpu h100 --gpus 8
    python -m gptjax.prepare --config gpt2_124m_muon
    python -m gptjax.train --config gpt2_124m_muon
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with another optimizer, schedule and length."""
    config = load_config("gpt2_124m")
    optim = replace(
        config.optim,
        name="muon",
        peak_lr=2e-3,
        final_lr=0.0,
        schedule="wsd",
        warmup_steps=281,
        cooldown_fraction=0.7,
        weight_decay=0.1,
    )
    train = replace(config.train, max_steps=5625)
    return replace(config, optim=optim, train=train)

"""GPT-2 large on one card of 24 GB, such as an RTX 4090: Lion, its moment in bfloat16.

Shape, data, batch and length are `gpt2_774m`'s, whose docstring gives the sources.
Lion (Chen et al. 2023) keeps one moment; in bfloat16 it takes 1.4 GiB, while AdamW's two take 5.8.
Betas 0.9 and 0.99 are the paper's. The learning rate is a fifth of AdamW's, and the decay is five
times as large (section 5: 3 to 10 times, so that their product stays): 5e-5 and 0.5. The rate falls
linearly to 0 (Defazio et al. 2023: no common shape is better).
Memory: 17.5 GiB with 8 rows by the planner, of 19.9 usable; AdamW has room for 4 rows.
Time: 148 hours on one RTX 4090 at 56% of its peak, by the planner; not measured.
Expected: not known; nobody has trained this config. GPT-2 XL does not fit such a card.

    python -m gptjax.plan --config gpt2_774m_24gb --gpu 4090
    python -m gptjax.prepare --config gpt2_774m_24gb
    python -m gptjax.train --config gpt2_774m_24gb
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_774m` with Lion and a linear decay of the learning rate."""
    config = load_config("gpt2_774m")
    optim = replace(
        config.optim,
        name="lion",
        peak_lr=5e-5,
        final_lr=0.0,
        schedule="linear",
        weight_decay=0.5,
        beta2=0.99,
        moments_dtype="bfloat16",
    )
    return replace(config, optim=optim)

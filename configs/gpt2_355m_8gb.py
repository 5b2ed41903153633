"""GPT-2 medium on one card of 8 GB with float16 but no bfloat16, such as an RTX 2070.

Shape, data, batch and length are `gpt2_355m`'s, whose docstring gives the sources.
For the card: float16 with dynamic loss scaling, attention in blocks, blocks recomputed in the
backward pass, logits 512 tokens at a time, and Adafactor (Shazeer and Stern 2018), whose moments
are row and column means. It has no first moment, and takes AdamW's learning rate here, because each
direction is clipped to RMS 1. That rate is our own choice.
Memory: 4.6 GiB by the planner, of 6.6 usable; AdamW needs 7.2.
Time: 33 seconds a step on a T4, of the same generation, at 56% of its peak, and a week in all; an
RTX 2070 has about half that peak. Not measured. `--train.max-steps` shortens it.
Expected: not known; nobody has trained this config.

    python -m gptjax.plan --config gpt2_355m_8gb --gpu t4
    python -m gptjax.prepare --config gpt2_355m_8gb
    python -m gptjax.train --config gpt2_355m_8gb
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_355m` with Adafactor, adapted to the card."""
    config = load_config("gpt2_355m")
    model = replace(config.model, dtype="float16", attention="blockwise", remat="block")
    optim = replace(config.optim, name="adafactor")
    train = replace(config.train, micro_batch=4, loss_chunk_tokens=512)
    return replace(config, model=model, optim=optim, train=train)

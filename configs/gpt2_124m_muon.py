"""GPT-2 small on a quarter of the tokens: Muon, a flat learning rate with a cooldown, an average.

Shape and data are `gpt2_124m`'s. The rest is modded-nanogpt's of October and November 2024, when
its blocks were still near GPT-2's: 5,100 steps of 2^19 = 2.67e9 tokens, a linear cooldown over the
last 1,450 (28.4%) to 0, an untied head (record 8; 163,037,184 parameters), attention inside
documents (record 12).
Learning rate: 1.8e-3 after a warm-up of 250 steps, betas 0.9 and 0.95, from its AdamW baseline.
Our Muon is scaled to AdamW's size (Liu et al. 2025, "Muon is Scalable"), so one rate and decay 0.1
serve both rules. Validation uses an average of the parameters (decay 0.99, our own choice), which
before the cooldown shows part of its gain (Hägele et al. 2024).
Expected: not known; nothing has been measured. Record 7, which also had rotary embeddings, RMSNorm
and squared ReLU, ended at 3.2755 nats after as many tokens. AdamW with GPT-2's blocks needs four
times as many for 3.28 (llm.c).
cuDNN's attention needs `--data.no-document-mask`. 0.21 hours on 8 H100 at 36% of the peak, by the
planner, which leaves Newton-Schulz out; not measured.

    python -m gptjax.plan --config gpt2_124m_muon --gpu h100 --gpus 8
    python -m gptjax.prepare --config gpt2_124m_muon
    python -m gptjax.train --config gpt2_124m_muon
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with another head, mask, optimizer, schedule and length."""
    config = load_config("gpt2_124m")
    model = replace(config.model, tied_head=False)
    data = replace(config.data, document_mask=True)
    optim = replace(
        config.optim,
        name="muon",
        peak_lr=1.8e-3,
        final_lr=0.0,
        schedule="wsd",
        warmup_steps=250,
        cooldown_fraction=0.284,
        ema_decay=0.99,
    )
    train = replace(config.train, max_steps=5100)
    return replace(config, model=model, data=data, optim=optim, train=train)

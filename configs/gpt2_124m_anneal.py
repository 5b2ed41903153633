"""GPT-2 small on FineWeb, then on half FineWeb-Edu while the learning rate cools down.

Shape, batch, optimizer and the 19,073 steps are `gpt2_124m`'s. The learning rate stays at its peak
and falls linearly to 0 over the last fifth (Hägele et al. 2024: 20% reaches the cosine's loss).
When it begins to fall, at step 15,258, the better text becomes half of the mixture: good data last,
as in MiniCPM (Hu et al. 2024). Shares and length are our own choice.
Tokens: 9.0e9 of FineWeb, 1.0e9 of FineWeb-Edu. A run stopped before the cooldown can be resumed
with another length: only the cooldown moves.
Expected: not known; nobody has trained this config. Its last validation losses are those of the new
mixture. 0.79 hours on 8 H100 at 36% of the peak, by the planner; not measured.

    FINEWEB=kjj0/fineweb10B-gpt2 EDU=HuggingFaceFW/fineweb-edu:sample-10BT
    python -m gptjax.prepare --config gpt2_124m_anneal --hub $FINEWEB --out data/fineweb_10b
    python -m gptjax.prepare --config gpt2_124m_anneal --hub $EDU --out data/fineweb_edu
    python -m gptjax.train --config gpt2_124m_anneal
"""

from dataclasses import replace

from gptjax.config import Config, DataConfig
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with another schedule, and a second source at the end."""
    config = load_config("gpt2_124m")
    data = DataConfig(
        tokenizer="gpt2",
        val_fraction=0.01,
        mixture=("data/fineweb_10b=1", "data/fineweb_edu=0"),
        mixture_changes=("15258=50,50",),
    )
    optim = replace(config.optim, schedule="wsd", cooldown_fraction=0.2, final_lr=0.0)
    return replace(config, data=data, optim=optim)

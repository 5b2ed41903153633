"""GPT-3 XL, 1.3 billion parameters, on 300 billion tokens.

Shape: Brown et al. (2020), table 2.1: 24 layers, 16 heads of 128, 2,048 wide, context 2048, GPT-2's
50,257 BPE tokens; 1,315,723,264 parameters with the tied head. Attention is dense in every layer;
the paper alternates dense and banded sparse layers.
Batch 2^20 tokens and peak learning rate 2e-4: the same table. Appendix B: cosine to a tenth of it
over 260e9 tokens (257,492 steps), warm-up over 375M (1,431), betas 0.9 and 0.95, decay 0.1,
clipping at 1.0. The batch grows from a quarter over 6e9 tokens (15,259 steps).
`gptjax/config/gpt3.py` has the whole table and says what is our own.
Length: 295,639 steps = 300e9 tokens.
The table's 24 heads of 128 do not make 2,048: 16 heads, as in EleutherAI's gpt-neox. The backward
pass recomputes norms, GELUs and sums.
Data: as `gpt3_125m`.
Expected: not known; nobody has trained this config. 249.8 hours on 8 H100 at 36% of the peak, by
the planner; not measured.

    python -m gptjax.plan --config gpt3_1300m --gpu h100 --gpus 8 --price 2.5
    python -m gptjax.prepare --config gpt3_1300m --hub HuggingFaceFW/fineweb:sample-350BT
    python -m gptjax.train --config gpt3_1300m
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.gpt3 import gpt3


def get_config() -> Config:
    """The row of the paper's table, and what the GPUs need."""
    config = gpt3("XL")
    model = replace(config.model, remat="dots")
    return replace(config, model=model)

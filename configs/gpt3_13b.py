"""GPT-3 13B on 300 billion tokens: nodes of eight GPUs.

Shape: Brown et al. (2020), table 2.1: 40 layers, 40 heads of 128, 5,120 wide, context 2048, GPT-2's
50,257 BPE tokens; 12,853,386,240 parameters with the tied head. Attention is dense in every layer;
the paper alternates dense and banded sparse layers.
Batch 2^21 tokens and peak learning rate 1e-4: the same table. Appendix B: cosine to a tenth of it
over 260e9 tokens (130,336 steps), warm-up over 375M (715), betas 0.9 and 0.95, decay 0.1, clipping
at 1.0. The batch grows from a quarter over 8e9 tokens (10,173 steps). `gptjax/config/gpt3.py` has
the whole table and says what is our own.
Length: 149,409 steps = 300e9 tokens.
The table's 5,140 is not 40 heads of 128: 5,120, as in EleutherAI's gpt-neox. Mesh: the GPUs of a
node divide parameters, gradients and moments; nodes are groups. The backward pass recomputes all of
a block but its attention.
Data: as `gpt3_125m`.
Expected: not known; nobody has trained this config. 304.1 hours on 64 H100 at 36% of the peak, by
the planner; not measured.

    python -m gptjax.plan --config gpt3_13b --gpu h100 --gpus 64 --price 2.5
    python -m gptjax.prepare --config gpt3_13b --hub HuggingFaceFW/fineweb:sample-350BT
    python -m gptjax.train --config gpt3_13b
"""

from dataclasses import replace

from gptjax.config import Config, MeshConfig
from gptjax.config.gpt3 import gpt3


def get_config() -> Config:
    """The row of the paper's table, and what the GPUs need."""
    config = gpt3("13B")
    model = replace(config.model, remat="block")
    return replace(config, model=model, mesh=MeshConfig(fsdp=8))

"""GPT-3 Small, 125 million parameters, on 300 billion tokens.

Shape: Brown et al. (2020), table 2.1: 12 layers, 12 heads of 64, 768 wide, context 2048, GPT-2's
50,257 BPE tokens; 125,226,240 parameters with the tied head. Attention is dense in every layer; the
paper alternates dense and banded sparse layers.
Batch 2^19 tokens and peak learning rate 6e-4: the same table. Appendix B: cosine to a tenth of it
over 260e9 tokens (508,626 steps), warm-up over 375M (2,861), betas 0.9 and 0.95, decay 0.1,
clipping at 1.0. The batch grows from a quarter over 4e9 tokens (20,345 steps).
`gptjax/config/gpt3.py` has the whole table and says what is our own.
Length: 584,920 steps = 300e9 tokens.
Data: OpenAI's was never published. FineWeb's sample of 350 billion tokens (Penedo et al. 2024) is
one epoch; `configs/gpt3_mixture.py` has the paper's shares of five sources.
Expected: not known; nobody has trained this config. 25.4 hours on 8 H100 at 36% of the peak, by the
planner; not measured.

    python -m gptjax.plan --config gpt3_125m --gpu h100 --gpus 8 --price 2.5
    python -m gptjax.prepare --config gpt3_125m --hub HuggingFaceFW/fineweb:sample-350BT
    python -m gptjax.train --config gpt3_125m
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.gpt3 import gpt3


def get_config() -> Config:
    """The row of the paper's table, and what the GPUs need."""
    config = gpt3("Small")
    model = replace(config.model, unroll=12)
    return replace(config, model=model)

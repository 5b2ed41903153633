"""GPT-3, for planning: 175 billion parameters on a thousand GPUs.

Shape: Brown et al. (2020), table 2.1, the last: 96 layers, 96 heads of 128, 12,288 wide, context
2048 (section 2.1), GPT-2's 50,257 BPE tokens; 174,604,259,328 parameters with the tied head.
Attention here is dense in every layer; the paper alternates dense and banded sparse layers.
Batch: 3 x 2^20 = 3.15M tokens, 1,536 rows (the paper's 3.2M do not divide among usual numbers of
GPUs).
Appendix B: peak learning rate 6e-5 (table 2.1), cosine to a tenth of it over 260e9 tokens, warm-up
over 375M, betas 0.9 and 0.95, decay 0.1, clipping at 1.0. The batch grows over the first 12e9
tokens; here it starts from a quarter, because the paper's 32k tokens are 16 rows, too few for so
many GPUs. `gptjax/config/gpt3.py` has the whole table.
Length: 300e9 tokens. Ramp: 10,173 steps of 2^18 x 3 and 2^19 x 3 tokens, half each; then
3 x 2^20: 101,726 steps in all. The cosine ends at step 89,010, the warm-up at 477.
Mesh: heads and widths divided among the 8 GPUs of a node, weights among 16 nodes.
Expected: 3.2e23 FLOP; the paper counts 3.14e23. Nobody has trained this config.

    python -m gptjax.plan --config gpt3_175b --gpu h100 --gpus 1024 --price 2.5
    python -m gptjax.train --config gpt3_175b
"""

from dataclasses import replace

from gptjax.config import Config, MeshConfig
from gptjax.config.gpt3 import gpt3


def get_config() -> Config:
    """The row of the paper's table, and what the GPUs need."""
    config = gpt3("175B")
    model = replace(config.model, remat="block")
    return replace(config, model=model, mesh=MeshConfig(fsdp=16, tensor=8))

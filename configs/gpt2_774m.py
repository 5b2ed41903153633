"""GPT-2 large on ten billion tokens of FineWeb, those of `gpt2_124m`.

Shape: Radford et al. (2019), table 2, the third: 36 layers, 1280 wide, context 1024, 50,257 BPE
tokens; 20 heads as in the released model. 774,030,080 parameters with the tied head (the paper
says 762M).
Batch: 2^19 tokens; Brown et al. (2020), table 2.1, has 0.5M for "GPT-3 Large" (760M) and the peak
learning rate of 2.5e-4. Cosine to a tenth of it, beta2 0.95, clipping, decay and the warm-up of
375M tokens = 715 steps: its appendix B.
Length: 10e9 / 2^19 = 19,073 steps; table 2.1 trains every size on 300e9 tokens, 30 times as many.
The backward pass recomputes norms, GELUs and sums: a row needs a third less memory.
Expected: not measured yet.

    python -m gptjax.plan --config gpt2_774m --gpu a100 --gpus 8 --price 2
    python -m gptjax.prepare --config gpt2_774m
    python -m gptjax.train --config gpt2_774m
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` in another shape, at the learning rate that belongs to it."""
    config = load_config("gpt2_124m")
    model = replace(config.model, n_layer=36, n_head=20, n_embd=1280, remat="dots", unroll=1)
    optim = replace(config.optim, peak_lr=2.5e-4, final_lr=2.5e-5)
    return replace(config, model=model, optim=optim)

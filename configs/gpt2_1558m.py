"""GPT-2 XL, the paper's largest, on 32 billion tokens of FineWeb.

Shape: Radford et al. (2019), table 2, the last: 48 layers, 1600 wide, context 1024, 50,257 BPE
tokens; 25 heads of 64 as in the released model. 1,557,611,200 parameters with the tied head (the
paper says 1542M). 25 heads and 50,304 rows of vocabulary have no common divisor: `--mesh.fsdp`
divides this model, `--mesh.tensor` cannot.
Batch: 2^20 tokens; Brown et al. (2020), table 2.1, has 1M for "GPT-3 XL" (1.3B) and the peak
learning rate of 2e-4. Cosine to a tenth of it, beta2 0.95, clipping, decay and the warm-up of 375M
tokens = 358 steps: its appendix B.
Data: FineWeb's sample of 100 billion tokens in llm.c's format, from kjj0/fineweb100B-gpt2: the
first 320 files and the validation file, 64 GB.
Length: 32e9 / 2^20 = 30,518 steps; table 2.1 trains every size on 300e9 tokens, nine times as many.
Expected: not measured yet. Parameters and moments alone are 17.4 GiB, without gradients: ask the
planner whether a GPU holds them.

    python -m gptjax.plan --config gpt2_1558m --gpu h100 --gpus 8 --price 2.5
    python -m gptjax.prepare --config gpt2_1558m
    python -m gptjax.train --config gpt2_1558m
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` in another shape, with the batch and learning rate that belong to it."""
    config = load_config("gpt2_124m")
    model = replace(config.model, n_layer=48, n_head=25, n_embd=1600, remat="dots", unroll=1)
    data = replace(config.data, path="data/fineweb_32b", hub="kjj0/fineweb100B-gpt2")
    optim = replace(config.optim, peak_lr=2e-4, final_lr=2e-5, warmup_steps=358)
    train = replace(config.train, batch_tokens=2**20, max_steps=30_518)
    return replace(config, model=model, data=data, optim=optim, train=train)

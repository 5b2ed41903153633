"""Follow instructions with LoRA: small adapters are trained, and the model itself stays as it is.

Rank 16 and alpha 32 on all four matrices of a block (c_attn, c_fc and both c_proj), dropout 0.05:
2,359,296 parameters are trained in GPT-2 124M, which peft counts as well. Hu et al. (2021), table
11, train GPT-2's adapters at 2e-4: with those weights give --optim.peak-lr 2e-4. The rate here is
for small shapes. Data, template and splits are those of instruct_alpaca.
Expected: a GPT of 1,088,256 parameters after 400 steps on tinyshakespeare.txt, a vocabulary of
2,048, has a validation loss of 4.47 at --optim.peak-lr 5e-3; all its parameters reach 3.89.

    python -m gptjax.train --config instruct_lora
    python -m gptjax.convert --run runs/instruct_lora --merge --out runs/merged

Add --data.examples FILE, and --train.init-from with a run or a directory of Hugging Face's.
Without --train.init-from there is nothing to adapt: a small shape is trained from random numbers,
all of it.
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`instruct_alpaca` with adapters, and the rate and decay that suit them."""
    config = load_config("instruct_alpaca")
    model = replace(
        config.model,
        lora_rank=16,
        lora_alpha=32.0,
        lora_dropout=0.05,
        lora_targets=("c_attn", "c_proj", "c_fc"),
    )
    optim = replace(config.optim, peak_lr=2e-3, weight_decay=0.01)
    return replace(config, model=model, optim=optim)

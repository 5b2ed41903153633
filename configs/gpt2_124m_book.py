"""GPT-2 small as in "Build a Large Language Model (From Scratch)": no qkv bias, dropout 0.1.

Everything else is `gpt2_124m`, whose docstring gives the sources, the tokens and the steps.
It has 124,412,160 parameters, the book's count with the tied head and 12 x 3 x 768 biases fewer
than GPT-2; with `--model.no-tied-head`, the book's 163,009,536. No public loss is known for this
variant on this data.

    python -m gptjax.prepare --config gpt2_124m_book
    python -m gptjax.train --config gpt2_124m_book
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with four fields changed."""
    config = load_config("gpt2_124m")
    model = replace(config.model, qkv_bias=False, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    return replace(config, model=model)

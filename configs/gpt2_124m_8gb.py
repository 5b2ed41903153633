"""GPT-2 small on one card of 8 GB from before tensor cores, such as a GTX 1070 Ti.

The training is that of `gpt2_124m`, whose docstring gives the sources, with dropout 0.1 as in 2019:
2^19 tokens a step as 256 micro-steps of 2 x 1024. Everything that decides memory suits the card:
float32 (its float16 is slower than its float32, and it has no bfloat16), attention in blocks,
logits 512 tokens at a time, and norms, GELUs and dropout recomputed in the backward pass.
Memory: 3.3 GiB of the 8, by the compiler's report; 1.4 of them are parameters and moments.
Arithmetic: 855 MFLOP a token; at half of the card's 8.2 TFLOP/s a step takes two minutes and
the whole run four weeks: `--train.max-steps` shortens it. Not measured on such a card.
Pins: jax[cuda12] (CUDA 13 has dropped the card) and `nvidia-cudnn-cu12==9.10.2.21` (the last with
Pascal); see docs/performance.md.

    python -m gptjax.prepare --config gpt2_124m_8gb
    python -m gptjax.train --config gpt2_124m_8gb
"""

from dataclasses import replace

from gptjax.config import Config
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with dropout, adapted to the card."""
    config = load_config("gpt2_124m")
    model = replace(
        config.model,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        resid_pdrop=0.1,
        dtype="float32",
        attention="blockwise",
        remat="dots",
        unroll=1,
    )
    train = replace(config.train, micro_batch=2, loss_chunk_tokens=512)
    return replace(config, model=model, train=train)

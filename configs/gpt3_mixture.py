"""GPT-3's mixture of five sources, for its smallest model: 125 million parameters, 300e9 tokens.

Brown et al. (2020), table 2.2: share of the training mixture, tokens in the source, and its epochs
in 300e9 tokens.

    Common Crawl (filtered)  60 %  410e9 tokens  0.44 epochs
    WebText2                 22 %   19e9         2.9
    Books1                    8 %   12e9         1.9
    Books2                    8 %   55e9         0.43
    Wikipedia                 3 %    3e9         3.4

The shares are rounded and add up to 101; from them the trainer gets 0.43, 3.44, 1.98, 0.43 and 2.97
epochs. It allows at most four epochs of any source (Muennighoff et al. 2023: up to four are as good
as new text). OpenAI never published the five sources: use a prepared directory of your own for
each.
Shape and optimizer: table 2.1's first row and appendix B. 12 layers, 12 heads, 768 wide, context
2048, batch 2^19 tokens, learning rate 6e-4 to a tenth over 260e9 tokens (495,911 steps), warm-up
over 375M (715 steps). 572,205 steps make 300e9 tokens. The batch ramp is left out.
Expected: 2.3e20 FLOP. Nobody has trained this config.

    python -m gptjax.prepare --config gpt3_mixture --input crawl.txt --out data/common_crawl
    python -m gptjax.train --config gpt3_mixture
"""

from dataclasses import replace

from gptjax.config import Config, DataConfig
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt2_124m` with twice the context, on five sources, for thirty times as many steps."""
    config = load_config("gpt2_124m")
    data = DataConfig(
        tokenizer="gpt2",
        mixture=(
            "data/common_crawl=60:4",
            "data/webtext2=22:4",
            "data/books1=8:4",
            "data/books2=8:4",
            "data/wikipedia=3:4",
        ),
    )
    model = replace(config.model, n_ctx=2048, unroll=1)
    optim = replace(config.optim, decay_steps=495_911)
    train = replace(
        config.train,
        max_steps=572_205,
        eval_every_steps=1000,
        eval_tokens=2**20,
        save_every_steps=1000,
    )
    return replace(config, model=model, data=data, optim=optim, train=train)

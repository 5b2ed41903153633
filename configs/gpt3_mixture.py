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
Everything else is `gpt3_125m`, whose docstring gives the sources and the steps.
Expected: 2.3e20 FLOP. Nobody has trained this config.

    python -m gptjax.prepare --config gpt3_mixture --input crawl.txt --out data/common_crawl
    python -m gptjax.train --config gpt3_mixture
"""

from dataclasses import replace

from gptjax.config import Config, DataConfig
from gptjax.config.presets import load_config


def get_config() -> Config:
    """`gpt3_125m` on five sources."""
    config = load_config("gpt3_125m")
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
    return replace(config, data=data)

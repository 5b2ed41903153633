"""How much arithmetic a model is: closed forms, nothing measured.

Counts follow Kaplan et al. (2020), section 2.1, and Chowdhery et al. (2022), appendix B: a matrix
of n weights costs 2 n operations a token forwards and 4 n backwards. Norms, GELUs, softmax, dropout
and the optimizer are left out, and so is what rematerialisation computes again: utilisation by
these counts is model FLOPs utilisation (MFU), which recomputing does not flatter.
"""

import math
from dataclasses import replace
from typing import Literal

from gptjax.config import ModelConfig
from gptjax.model.places import leaves

ATTENTION_SHARE = {"none": 0.0, "causal": 0.5, "full": 1.0}
"""Share of the T x T attention weights that is counted."""


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters as papers count them: padding of the vocabulary left out.

    A vocabulary that is not known yet counts nothing.

    >>> parameter_count(ModelConfig(n_vocab=50257))  # GPT-2 small
    124439808
    """
    known = replace(cfg, n_vocab=cfg.n_vocab or 0)
    return sum(math.prod(leaf.published_shape) for leaf in leaves(known))


def matmul_parameters(cfg: ModelConfig) -> int:
    """Weights that every token is multiplied with: the blocks' matrices and the head.

    The head counts with the padded vocabulary, since its padding is multiplied as well; looking up
    embeddings multiplies nothing.

    >>> matmul_parameters(ModelConfig(n_vocab=50257))
    123568128
    """
    blocks = sum(leaf.elements for leaf in leaves(cfg) if leaf.is_block_matrix)
    return blocks + cfg.padded_vocab * cfg.n_embd


def flops_per_token(
    cfg: ModelConfig, context: int, attention: Literal["causal", "full", "none"] = "causal"
) -> float:
    """Floating-point operations to train on one token, forwards and backwards.

    6 n + 12 s N T D, with n `matmul_parameters`, T `context` and s the share of the attention
    weights that is counted: 1 for `full`, which is what PaLM's formula and a plain implementation
    do; 1/2 for `causal`, since half of them are masked and flash attention skips those; 0 for
    `none`. GPT-2 small with 50,304 rows and T = 1024: 854.7, 798.0 and 741.4 MFLOP.

    >>> flops_per_token(ModelConfig(n_vocab=50257), context=1024) / 1e6
    798.031872
    """
    scores = 12 * cfg.n_layer * context * cfg.n_embd
    return 6 * matmul_parameters(cfg) + ATTENTION_SHARE[attention] * scores

"""How much arithmetic a model is, and how much a device can do: closed forms, nothing measured.

Counts follow Kaplan et al. (2020), section 2.1, and Chowdhery et al. (2022), appendix B: a matrix
of n weights costs 2 n operations a token forwards and 4 n backwards. Norms, GELUs, softmax, dropout
and the optimizer are left out, and so is what rematerialisation computes again: utilisation by
these counts is model FLOPs utilisation (MFU), which recomputing does not flatter.
"""

import math
import re
from dataclasses import replace
from typing import Literal

from gptjax.config import Config, ModelConfig
from gptjax.places import leaves

HEADROOM = 0.9  # share of a device's memory that an update may need
ATTENTION_SHARE = {"none": 0.0, "causal": 0.5, "full": 1.0}
"""Share of the T x T attention weights that is counted."""


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters as papers count them: padding of the vocabulary left out.

    A vocabulary that is not known yet counts nothing.
    """
    known = replace(cfg, n_vocab=cfg.n_vocab or 0)
    return sum(math.prod(leaf.published_shape) for leaf in leaves(known))


def matmul_parameters(cfg: ModelConfig) -> int:
    """Weights that every token is multiplied with: the blocks' matrices and the head.

    The head counts with the padded vocabulary, since its padding is multiplied as well; looking up
    embeddings multiplies nothing.
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
    """
    scores = 12 * cfg.n_layer * context * cfg.n_embd
    return 6 * matmul_parameters(cfg) + ATTENTION_SHARE[attention] * scores


def matmul_dtype(cfg: ModelConfig) -> str:
    """The type whose peak the model's products are held against: a dtype, or `tf32`."""
    is_tf32 = cfg.dtype == "float32" and cfg.float32_matmul == "tf32"
    return "tf32" if is_tf32 else cfg.dtype


def peak_tokens_per_second(config: Config, device_kind: str, devices: int) -> float | None:
    """Tokens a second if all devices did the model's arithmetic at their peak; None if unknown.

    The rate of a run divided by this is its MFU, with causal attention.
    """
    peak = peak_flops(device_kind, matmul_dtype(config.model))
    return None if peak is None else devices * peak / flops_per_token(config.model, config.context)


def _half(flops: float) -> dict[str, float]:
    return {"bfloat16": flops, "float16": flops}


# Whole names, so that a laptop's, a cut-down or a partitioned (MIG) relative of a device is unknown
# rather than wrong. Tera-operations a second.
_MEMORY = r"([- ]\d+GB)?( HBM\d+e?)?"
_PEAKS: dict[str, dict[str, float]] = {
    rf"NVIDIA B200{_MEMORY}": _half(2250) | {"tf32": 1125, "float32": 75},
    rf"NVIDIA (H200|GH200|H100){_MEMORY}": _half(989.4) | {"tf32": 494.7, "float32": 66.9},
    r"NVIDIA H100 PCIe": _half(756) | {"tf32": 378, "float32": 51.2},
    r"NVIDIA (H200|H100) NVL": _half(835.5) | {"tf32": 417.7, "float32": 60},
    rf"NVIDIA A100(-SXM4|-PCIE|-PCIe)?{_MEMORY}( PCIe)?": (
        _half(312) | {"tf32": 156, "float32": 19.5}
    ),
    r"NVIDIA A10G": _half(70) | {"tf32": 35, "float32": 35},
    r"NVIDIA A10": _half(125) | {"tf32": 62.5, "float32": 31.2},
    r"NVIDIA L4": _half(121) | {"tf32": 60, "float32": 30.3},
    r"NVIDIA L40S": _half(362) | {"tf32": 183, "float32": 91.6},
    r"NVIDIA GeForce RTX 4090": _half(165.2) | {"tf32": 82.6, "float32": 82.6},
    r"NVIDIA GeForce RTX 3090": _half(71) | {"tf32": 35.6, "float32": 35.6},
    rf"Tesla V100-SXM[23]{_MEMORY}": {"float16": 125, "float32": 15.7},
    rf"Tesla V100-PCIE{_MEMORY}": {"float16": 112, "float32": 14},
    r"Tesla T4": {"float16": 65, "float32": 8.1},
    r"(NVIDIA )?GeForce GTX 1070 Ti": {"float32": 8.2},
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense peak of one device in operations a second; None for an unknown device or type.

    `device_kind` is jax's name of it; `dtype` is bfloat16, float16, tf32 or float32, the last
    without tensor cores. Half-precision peaks are those with float32 accumulation, without
    structured sparsity, at boost clock. From NVIDIA's data sheets: "H100 Tensor Core GPU",
    "H200 Tensor Core GPU", "HGX B200", "A100 Tensor Core GPU", "A10", "L4", "L40S", "V100" and
    "T4", AWS's notes on A10G, and the white papers of the Ada (GeForce RTX 4090), GA102 (RTX 3090)
    and Pascal (GTX 1070 Ti) architectures.
    """
    for name, peaks in _PEAKS.items():
        if re.fullmatch(name, device_kind):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def gibibytes(n: float) -> str:
    """Bytes as people read them: 3 digits."""
    size = n / 2**30
    if size >= 1000:
        return f"{size:,.0f} GiB"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{math.floor(size * 10**digits + 0.5) / 10**digits:.{digits}f} GiB"

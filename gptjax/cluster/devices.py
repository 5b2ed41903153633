"""Peak FLOP/s of each device by data sheets, shares of it that trainers reached, and of its memory.

Nothing here was measured by this project.
"""

import re
from dataclasses import dataclass

from gptjax.config import Config, ModelConfig
from gptjax.model.size import flops_per_token

POOL_SHARE = 0.92  # of a GPU's memory, in which jax allocates while it trains
HEADROOM = 0.9  # share of that pool that a step may need, by the compiler's account


def matmul_dtype(cfg: ModelConfig) -> str:
    """The type whose peak applies to the model's matrix products: a dtype, or `tf32`."""
    is_tf32 = cfg.dtype == "float32" and cfg.float32_matmul == "tf32"
    return "tf32" if is_tf32 else cfg.dtype


def peak_tokens_per_second(config: Config, device_kind: str, devices: int) -> float | None:
    """Tokens per second if all devices computed at their peak; None if the peak is unknown.

    The rate of a run divided by this is its MFU, counting causal attention.
    """
    peak = peak_flops(device_kind, matmul_dtype(config.model))
    return None if peak is None else devices * peak / flops_per_token(config.model, config.context)


def _half(flops: float) -> dict[str, float]:
    return {"bfloat16": flops, "float16": flops}


# Whole names: a laptop, cut-down or partitioned (MIG) variant of a device is then unknown rather
# than wrong. Unit: 1e12 operations per second.
_MEMORY = r"([- ]\d+GB)?( HBM\d+e?)?"
_PEAKS: dict[str, dict[str, float]] = {
    r"NVIDIA GB200": _half(2500) | {"tf32": 1250, "float32": 80},
    rf"NVIDIA (B200{_MEMORY}|B300( SXM6 AC)?)": _half(2250) | {"tf32": 1125, "float32": 75},
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
    r"NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (
        _half(503.8) | {"tf32": 251.9, "float32": 126}
    ),
    r"NVIDIA RTX PRO 6000 Blackwell Server Edition": _half(480) | {"tf32": 240, "float32": 120},
    r"NVIDIA GeForce RTX 5090": _half(209.5) | {"tf32": 104.8, "float32": 104.8},
    r"NVIDIA GeForce RTX 5080": _half(112.6) | {"tf32": 56.3, "float32": 56.3},
    r"NVIDIA GeForce RTX 4090": _half(165.2) | {"tf32": 82.6, "float32": 82.6},
    r"NVIDIA GeForce RTX 3090": _half(71) | {"tf32": 35.6, "float32": 35.6},
    rf"Tesla V100-SXM[23]{_MEMORY}": {"float16": 125, "float32": 15.7},
    rf"Tesla V100-PCIE{_MEMORY}": {"float16": 112, "float32": 14},
    r"Tesla T4": {"float16": 65, "float32": 8.1},
    r"(NVIDIA )?GeForce GTX 1070 Ti": {"float32": 8.2},
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense peak of one device in operations a second; None for an unknown device or type.

    `device_kind` is jax's name for it; `dtype` is bfloat16, float16, tf32 or float32, the last
    without tensor cores. Half-precision peaks assume float32 accumulation, boost clock and no
    structured sparsity. From NVIDIA's data sheets: "H100 Tensor Core GPU",
    "H200 Tensor Core GPU", "HGX B200", "HGX B300", "GB200 NVL72" (a 72nd of it), "A100 Tensor Core
    GPU", "A10", "L4", "L40S", "V100" and "T4", AWS's notes on A10G, and the white papers of the RTX
    Blackwell (GeForce RTX 5090 and 5080), RTX PRO Blackwell, Ada (GeForce RTX 4090), GA102 (RTX
    3090) and Pascal (GTX 1070 Ti) architectures. The data sheet of the RTX PRO 6000's Server
    Edition gives its 120 TFLOP/s in float32; the others follow, as in the Workstation Edition.
    """
    for name, peaks in _PEAKS.items():
        if re.fullmatch(name, device_kind):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


@dataclass(frozen=True)
class TypicalMfu:
    """The share of its peak that good trainers reached on a device, and where that is from."""

    share: float
    """Model FLOPs utilisation with causal attention, 0 to 1."""
    source: str
    """Who reached it with which model on which devices."""
    relative: str | None = None
    """The card that it was reached on, if no figure of the device itself is public."""


_REACHED = {
    "A100": (0.56, "llm.c's, GPT-2 124M on eight A100"),
    "H100": (0.36, "torch.compile's 34% and llm.c's 38%, 124M on eight H100"),
    "B200": (0.22, "torch.compile's, a 124M GPT on eight B200"),
}
# Cards without a figure: the one of their generation, else the one whose memory has the nearest
# bandwidth for each FLOP/s of the peak.
_RELATIVES = {
    r"NVIDIA (B300|GB200).*": "B200",
    r"NVIDIA (H200|GH200|L4|L40S|RTX PRO 6000)\b.*": "H100",
}


def typical_mfu(device_kind: str) -> TypicalMfu:
    """The utilisation to expect of a good trainer on a device, which no run of ours has measured.

    The figures are for GPT-2 124M and its likes, from tokens a second on each device that llm.c's
    training script (A100: 218,000) and the logs of modded-nanogpt give (H100: 422,000 in track 3,
    468,000 for llm.c; B200: 621,000 in track 3), read in November 2026. Larger models reach more.

    >>> typical_mfu("NVIDIA A100-SXM4-80GB").share
    0.56
    """
    for card, reached in _REACHED.items():
        if re.match(rf"NVIDIA {card}\b", device_kind):
            return TypicalMfu(*reached)
    matching = (card for name, card in _RELATIVES.items() if re.fullmatch(name, device_kind))
    card = next(matching, "A100")
    return TypicalMfu(*_REACHED[card], relative=card)

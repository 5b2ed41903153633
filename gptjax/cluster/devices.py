"""Peak FLOP/s of each device, from data sheets, and shares of its memory; nothing is measured."""

import re

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

    `device_kind` is jax's name for it; `dtype` is bfloat16, float16, tf32 or float32, the last
    without tensor cores. Half-precision peaks assume float32 accumulation, boost clock and no
    structured sparsity. From NVIDIA's data sheets: "H100 Tensor Core GPU",
    "H200 Tensor Core GPU", "HGX B200", "A100 Tensor Core GPU", "A10", "L4", "L40S", "V100" and
    "T4", AWS's notes on A10G, and the white papers of the Ada (GeForce RTX 4090), GA102 (RTX 3090)
    and Pascal (GTX 1070 Ti) architectures.
    """
    for name, peaks in _PEAKS.items():
        if re.fullmatch(name, device_kind):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None

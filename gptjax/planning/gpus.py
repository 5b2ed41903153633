"""The GPUs that a run can be planned for: memory and links. Peaks are in `gptjax.cluster.devices`.

Memory is nvidia-smi's figure, in MiB. Bandwidths are bytes per second in one direction, as NCCL's
tests define bus bandwidth: a ring all-reduce of n devices moves `2 (n - 1) / n` of its operand,
divided by its time. Within a node they are `ATTAINED` of the link's rate in the data sheet; between
nodes, of the network of a usual machine. A card that NVIDIA does not let talk to others directly
(GeForce since the RTX 3090) goes through the host's memory and gets less. None of these bandwidths
has been measured: give your own by `--bus` and `--network`.
"""

import re
from dataclasses import dataclass
from functools import partial

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.cluster.devices import POOL_SHARE, TypicalMfu, peak_flops, typical_mfu
from gptjax.config import ModelConfig
from gptjax.config.attention import cudnn_limits, portable

ATTAINED = 0.8  # share of a link's rate that large all-reduces over NVLink reach


@dataclass(frozen=True)
class Gpu:
    """One type of GPU in the machine it is usually found in."""

    name: str
    """The name that `--gpu` takes."""
    kind: str
    """jax's `device_kind`, under which `gptjax.cluster.devices.peak_flops` has its peaks."""
    memory: int
    """Bytes."""
    bus: float
    """Bus bandwidth within a node, bytes a second."""
    network: float
    """Each GPU's own bandwidth between nodes, bytes a second."""
    source: str
    """Source of the two bandwidths."""

    @property
    def has_bfloat16(self) -> bool:
        """Whether its matrix units take bfloat16 (compute capability 8.0 and newer)."""
        return peak_flops(self.kind, "bfloat16") is not None

    @property
    def pool(self) -> int:
        """Bytes in which jax allocates while it trains."""
        return int(POOL_SHARE * self.memory)

    @property
    def mfu(self) -> TypicalMfu:
        """The share of its peak that good trainers reached, and the source of that."""
        return typical_mfu(self.kind)

    def dtype(self, wanted: str) -> str:
        """The type to compute in: `wanted`, or float32 if the GPU does not have it."""
        return wanted if peak_flops(self.kind, wanted) is not None else "float32"

    def attention(self, model: ModelConfig, context: int, masked_by: str | None = None) -> str:
        """The attention that `auto` or `cudnn` will probably be for the final `model.dtype`.

        Any other is kept. A run times what works; here the kernels are assumed to be faster than
        portable attention, cuDNN's the fastest. Both need a GPU with bfloat16 and a head size of at
        most 128, cuDNN's one that 8 divides. Where cuDNN's has limits of its own, Pallas' has none.
        """
        if model.attention not in ("auto", "cudnn"):
            return model.attention
        if not self.has_bfloat16 or model.dtype == "float32" or model.head_dim > 128:
            return portable(context)
        refused = any(cudnn_limits(model, masked_by)) or model.head_dim % 8
        return "pallas" if refused else "cudnn"


def _gpu(
    link: str, name: str, kind: str, mib: int, gigabytes: float, gigabits: float, node: str
) -> Gpu:
    """`gigabytes` a second of the link, `gigabits` a second of network for each GPU."""
    return Gpu(
        name,
        kind,
        mib * 2**20,
        ATTAINED * gigabytes * 1e9,
        ATTAINED * gigabits / 8 * 1e9,
        f"{link}, {gigabytes:g} GB/s; {node}",
    )


_nvlink = partial(_gpu, "NVLink")
_direct = partial(_gpu, "PCIe between GPUs")
_hosted = partial(_gpu, "PCIe through the host's memory, about half of its rate")
_DESK = "one 10 Gbit/s Ethernet"
_PRO_6000 = "NVIDIA RTX PRO 6000 Blackwell Server Edition"

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _hosted("gtx1070ti", "NVIDIA GeForce GTX 1070 Ti", 8_119, 8, 10, _DESK),
        _direct("t4", "Tesla T4", 15_360, 16, 12.5, "AWS g4dn.metal: 100 Gbit/s for 8"),
        _nvlink("v100", "Tesla V100-SXM2-32GB", 32_768, 150, 50, "DGX-1: 4 x 100 Gbit/s for 8"),
        _hosted("rtx3090", "NVIDIA GeForce RTX 3090", 24_576, 16, 10, _DESK),
        _hosted("rtx4090", "NVIDIA GeForce RTX 4090", 24_564, 16, 10, _DESK),
        _hosted("rtx5080", "NVIDIA GeForce RTX 5080", 16_303, 32, 10, _DESK),
        _hosted("rtx5090", "NVIDIA GeForce RTX 5090", 32_607, 32, 10, _DESK),
        _direct("rtxpro6000", _PRO_6000, 97_887, 64, 200, "AWS g7e.48xlarge: 1600 Gbit/s for 8"),
        _direct("a10g", "NVIDIA A10G", 23_028, 32, 12.5, "AWS g5.48xlarge: 100 Gbit/s for 8"),
        _direct("l4", "NVIDIA L4", 23_034, 16, 12.5, "GCP g2-standard-96: 100 Gbit/s for 8"),
        _direct("l40s", "NVIDIA L40S", 46_068, 32, 50, "AWS g6e.48xlarge: 400 Gbit/s for 8"),
        _nvlink("a100-40", "NVIDIA A100-SXM4-40GB", 40_960, 300, 200, "DGX A100: 8 x 200 Gbit/s"),
        _nvlink("a100", "NVIDIA A100-SXM4-80GB", 81_920, 300, 200, "DGX A100: 8 x 200 Gbit/s"),
        _nvlink("h100", "NVIDIA H100 80GB HBM3", 81_559, 450, 400, "DGX H100: 8 x 400 Gbit/s"),
        _nvlink("h200", "NVIDIA H200", 143_771, 450, 400, "DGX H200: 8 x 400 Gbit/s"),
        _nvlink("b200", "NVIDIA B200", 183_359, 900, 400, "DGX B200: 8 x 400 Gbit/s"),
        _nvlink("gb200", "NVIDIA GB200", 189_471, 900, 400, "NVL72: 72 x 400 Gbit/s for 72"),
        _nvlink("b300", "NVIDIA B300 SXM6 AC", 275_040, 900, 800, "DGX B300: 8 x 800 Gbit/s"),
    )
}
"""By name, the smallest and oldest first. Rates of links: half of the sum for both directions in
NVIDIA's data sheets; PCIe x16 has 16 GB/s in one direction in version 3.0, 32 in 4.0, 64 in 5.0. A
GB200 shares NVLink with a rack of 72: `--gpus-per-node 72`."""

ALIASES = {
    "1070ti": "gtx1070ti", "3090": "rtx3090", "4090": "rtx4090", "5080": "rtx5080",
    "5090": "rtx5090", "rtx6000pro": "rtxpro6000", "pro6000": "rtxpro6000", "a10080": "a100",
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any spelling: `H100`, `RTX 4090`, `a100-40gb`.

    Raises a `ConfigError` that gives the nearest name and lists all.

    >>> find_gpu("NVIDIA H100").name
    'h100'
    """

    def plain(text: str) -> str:
        return re.sub(r"gb$", "", re.sub(r"[\s_-]", "", text.lower().removeprefix("nvidia")))

    known = {plain(n): n for n in GPUS} | ALIASES | {plain(g.kind): n for n, g in GPUS.items()}
    if plain(name) in known:
        return GPUS[known[plain(name)]]
    near = did_you_mean(name.lower(), GPUS)
    raise ConfigError([f"unknown GPU {name!r}{near}; expected one of {', '.join(GPUS)}"])

"""Descriptions of GPUs for XLA's compiler, which then needs no such GPU; loads no jax.

jax's CUDA plugin carries descriptions of some cards since jax 0.12; `find_target` takes its own
where there is one. For all others there is a file in `cards/`, written by hand from data sheets. A
program compiled for such a file is approximate: its tiles and its choices may differ from those on
the card itself.
"""

import mmap
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.cluster.plugins import CUDA_PLUGINS
from gptjax.planning.gpus import GPUS, Gpu

INSTALL = "make setup-compile"
LIBRARY = "xla_cuda_plugin.so"
CARDS = Path(__file__).parent / "cards"
BEGINNING = re.compile(rb"gpu_device_info\s*\{")
KIND = re.compile(r'^device_description_str: "([^"]+)"', re.MULTILINE)
ALSO_CALLED = {
    "NVIDIA H200": "NVIDIA H200 141GB HBM3e",
    "NVIDIA B300 SXM6 AC": "NVIDIA B300",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "NVIDIA RTX PRO 6000 Blackwell",
}
"""Cards whose description in the plugin has another name than jax gives the device."""


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    gpu: Gpu
    text: str
    """XLA's GpuTargetConfigProto in text form."""
    is_approximate: bool
    """Whether the description was written by hand."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second between the GPU and its memory."""
        return self._number("memory_bandwidth")

    @property
    def cores(self) -> int:
        """Streaming multiprocessors."""
        return int(self._number("core_count"))

    @property
    def source(self) -> str:
        """Where the description comes from, in words."""
        if self.is_approximate:
            return (
                f"a description written by hand (planning/cards/{self.gpu.name}.txtpb): approximate"
            )
        return "the description of this card in jax's plugin"

    def _number(self, field: str) -> float:
        found = re.search(rf"^ *{field}: (\d+)", self.text, re.MULTILINE)
        if found is None:
            raise ValueError(f"the description of {self.gpu.name} has no {field}")
        return float(found[1])


def find_target(gpu: Gpu) -> Target:
    """The description of a GPU, of the plugin if it has one, else of `cards/`.

    Raises `UserError` if the plugin is not installed, or if nothing describes this GPU.
    """
    embedded = embedded_descriptions(plugin_library())
    kind = next((k for k in (gpu.kind, ALSO_CALLED.get(gpu.kind)) if k in embedded), None)
    if kind is not None:
        return Target(gpu, embedded[kind], is_approximate=False)
    if (own := CARDS / f"{gpu.name}.txtpb").is_file():
        return Target(gpu, own.read_text(), is_approximate=True)
    known = [g.name for g in GPUS.values() if g.kind in embedded or _has_card(g)]
    raise UserError(
        f"--compile cannot compile for {gpu.name}: the installed jax has no description of it. "
        f"Choose one of {', '.join(known)}"
    )


def plugin_library() -> Path:
    """The library of jax's CUDA plugin, which has the compiler. Raises `UserError` without it."""
    for name in CUDA_PLUGINS:
        spec = find_spec(name) if find_spec(name.partition(".")[0]) else None
        if spec is not None and spec.origin is not None:
            library = Path(spec.origin).parent / LIBRARY
            if library.is_file():
                return library
    raise UserError(f"--compile needs XLA's compiler for GPUs, which is not installed: {INSTALL}")


def assembler_directory() -> Path | None:
    """The directory of NVIDIA's assembler, from its wheel; None lets XLA search for another.

    XLA takes any `ptxas` that it finds, and that of CUDA 13 knows no card before Turing.
    """
    spec = find_spec("nvidia.cuda_nvcc") if find_spec("nvidia") else None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(p) for p in places if (Path(p) / "bin" / "ptxas").is_file()), None)


def embedded_descriptions(library: Path) -> dict[str, str]:
    """The descriptions of NVIDIA cards within the plugin's library, by name; none in jax 0.10.

    Each is a text that ends with a zero byte.
    """
    found = {}
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for beginning in BEGINNING.finditer(data):
            end = data.find(b"\0", beginning.start())
            text = data[beginning.start() : end].decode("latin1")
            name = KIND.search(text)
            if name is not None and 'platform_name: "CUDA"' in text:
                found[name[1]] = text
    return found


def _has_card(gpu: Gpu) -> bool:
    return (CARDS / f"{gpu.name}.txtpb").is_file()

"""Libraries that do not suit the GPU here, as pip has installed them: the program runs, or dies.

jax chooses no library by the GPU. Two generations need a certain one: the sources are cuDNN's
support matrices 9.10 and 9.11, jax's installation page, and the warning on cuBLAS in jax's own
CUDA plugin, which says no remedy.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OLDEST = (7, 5)  # compute capability that CUDA 13 and cuDNN 9.11 still know: Turing
FREES_TWICE = (12, 8), (13, 2)  # cuBLAS from the first to before the second, on
WITH_TENSOR_MEMORY = (10, 0), (12, 0)  # GPUs from the first to before the second: B200, GB200, B300
LAST_CUDNN = "9.10.2.21"  # for GPUs older than `OLDEST`


def package_notes(devices: Iterable[Any]) -> list[str]:
    """What to install instead for each kind of GPU that needs other libraries, in words."""
    kinds = {
        device.device_kind: _numbers(device.compute_capability)
        for device in devices
        if getattr(device, "platform", None) == "gpu" and hasattr(device, "compute_capability")
    }
    notes = (_note(kind, capability) for kind, capability in kinds.items())
    return [note for note in notes if note is not None]


def _note(kind: str, capability: tuple[int, ...]) -> str | None:
    has_13 = _installed("jax-cuda13-plugin") is not None
    cublas = _installed("nvidia-cublas" if has_13 else "nvidia-cublas-cu12")
    cudnn = _installed("nvidia-cudnn-cu12")
    if capability < OLDEST:
        if has_13:
            return (
                f"CUDA 13 does not support the {kind}: install the extra cuda12 with "
                f"nvidia-cudnn-cu12=={LAST_CUDNN} instead of cuda13"
            )
        if cudnn is not None and cudnn > _numbers(LAST_CUDNN):
            return (
                f"cuDNN {_words(cudnn)} does not support the {kind}: pip install "
                f"nvidia-cudnn-cu12=={LAST_CUDNN}"
            )
        return None
    first, fixed = FREES_TWICE
    oldest, newer = WITH_TENSOR_MEMORY
    if cublas is not None and oldest <= capability < newer and first <= cublas < fixed:
        return (
            f"cuBLAS {_words(cublas)} can corrupt results on the {kind} without an error: install "
            f"the extra cuda13, which brings {_words(fixed)} or newer"
        )
    return None


def _installed(package: str) -> tuple[int, ...] | None:
    """A package's version; None if pip has not installed it."""
    try:
        return _numbers(version(package))
    except PackageNotFoundError:
        return None


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(".") if word.isdigit())


def _words(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))

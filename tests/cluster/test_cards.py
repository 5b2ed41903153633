"""A GPU whose libraries do not suit it is named, with the ones that do."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import jax
import pytest

from gptjax.cluster import cards
from gptjax.cluster.cards import package_notes
from gptjax.cluster.environment import find_devices

PASCAL = SimpleNamespace(platform="gpu", device_kind="GTX 1070 Ti", compute_capability="6.1")
TURING = SimpleNamespace(platform="gpu", device_kind="Tesla T4", compute_capability="7.5")
HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
B200 = SimpleNamespace(platform="gpu", device_kind="NVIDIA B200", compute_capability="10.0")
RTX5090 = SimpleNamespace(platform="gpu", device_kind="RTX 5090", compute_capability="12.0")

# as pip resolves the two extras with jax 0.12
CUDA12 = {"nvidia-cublas-cu12": "12.9.3.13", "nvidia-cudnn-cu12": "9.28.0.42"}
CUDA13 = {"jax-cuda13-plugin": "0.12.0.1", "nvidia-cublas": "13.10.0.20"}
PINNED = CUDA12 | {"nvidia-cudnn-cu12": "9.10.2.21"}


@pytest.fixture
def installed(monkeypatch):
    packages: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(cards, "version", version)
    return packages


@pytest.mark.parametrize(
    ("device", "packages", "remedy"),
    [
        (PASCAL, CUDA12, "pip install nvidia-cudnn-cu12==9.10.2.21"),
        (PASCAL, CUDA13, "the extra cuda12 with nvidia-cudnn-cu12==9.10.2.21"),
        (PASCAL, PINNED, None),
        (PASCAL, {}, None),  # libraries of the system
        (TURING, CUDA12, None),
        (TURING, CUDA13, None),
        (HOPPER, CUDA12, None),
        (B200, CUDA12, "the extra cuda13"),
        (B200, CUDA12 | {"nvidia-cublas-cu12": "12.7.1"}, None),  # before the fault
        (B200, CUDA13, None),
        (B200, CUDA13 | {"nvidia-cublas": "13.1.0.3"}, "brings 13.2 or newer"),
        (B200, {}, None),
        (RTX5090, CUDA12, None),
    ],
)
def test_a_remedy_is_named_where_one_is_needed(device, packages, remedy, installed):
    installed |= packages
    notes = package_notes([device, device])
    assert len(notes) == (remedy is not None)
    if remedy is not None:
        assert device.device_kind in notes[0]
        assert remedy in notes[0]


def test_every_command_that_finds_such_a_card_says_so(installed, monkeypatch, capsys):
    installed |= CUDA12
    monkeypatch.setattr(jax, "devices", lambda: [B200])
    find_devices()
    assert capsys.readouterr().err.startswith("note: cuBLAS 12.9.3.13 can corrupt results")

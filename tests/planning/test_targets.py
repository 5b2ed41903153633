"""Every GPU has a description, whose numbers have a source and agree with the data sheets here."""

import re
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.cluster.devices import peak_flops
from gptjax.planning import targets
from gptjax.planning.gpus import GPUS, find_gpu
from gptjax.planning.targets import CARDS, embedded_descriptions, find_target, plugin_library

FILES = sorted(CARDS.glob("*.txtpb"))
H100, L4 = find_gpu("h100"), find_gpu("l4")


def numbers(path: Path) -> dict[str, float]:
    return {k: float(n) for k, n in re.findall(r"(\w+): ([\d.]+)(?:\s|$)", path.read_text())}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Pretend that a plugin is installed whose library holds these texts."""

    def install(*texts: str) -> Path:
        library = tmp_path / "plugin.so"
        between = b"\0\x7fELF gpu_device_info \xff\0"
        library.write_bytes(between + between.join(text.encode() + b"\0" for text in texts))
        monkeypatch.setattr(targets, "plugin_library", lambda: library)
        return library

    return install


def description(kind: str, platform: str = "CUDA", bandwidth: int = 7) -> str:
    return (
        f"gpu_device_info {{\n  memory_bandwidth: {bandwidth}\n  core_count: 3\n}}\n"
        f'platform_name: "{platform}"\ndevice_description_str: "{kind}"\n'
    )


def test_every_planned_gpu_has_a_description_for_every_version_of_jax(plugin):
    plugin()
    for gpu in GPUS.values():
        target = find_target(gpu)
        assert target.is_approximate
        assert "approximate" in target.source
        assert f'device_description_str: "{gpu.kind}"' in target.text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_a_source(path):
    lines, is_explained = path.read_text().splitlines(), False
    for line in lines[lines.index("gpu_device_info {") + 1 :]:
        if line.startswith("}"):
            break
        is_explained = is_explained or line.strip().startswith("#")
        assert is_explained, f"{line} has no source above it"
    assert "approximate" in path.read_text().partition("gpu_device_info")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_numbers_agree_with_what_the_planner_knows(path):
    """Units and clock give the peak of the data sheet; memory is that of the planner."""
    found = numbers(path)
    (kind,) = re.findall(r'^device_description_str: "(.*)"', path.read_text(), re.MULTILINE)
    if (peak := peak_flops(kind, "float32")) is not None:
        computed = 2e9 * found["core_count"] * found["fpus_per_core"] * found["clock_rate_ghz"]
        assert computed == pytest.approx(peak, rel=0.01)
    if path.stem in GPUS:
        assert found["device_memory_size"] == GPUS[path.stem].memory


def test_the_plugins_own_description_comes_first(plugin):
    plugin(description("NVIDIA L4", bandwidth=123), description("AMD MI300", "ROCM"))
    target = find_target(L4)
    assert (target.bandwidth, target.cores, target.is_approximate) == (123, 3, False)
    assert "approximate" not in target.source
    assert find_target(H100).is_approximate


def test_descriptions_are_cut_out_of_the_library_whole(plugin):
    texts = [description("NVIDIA L4"), description("NVIDIA X", bandwidth=5)]
    library = plugin(*texts, description("AMD MI300", "ROCM"))
    assert embedded_descriptions(library) == {"NVIDIA L4": texts[0], "NVIDIA X": texts[1]}


def test_what_nothing_describes_is_one_error_that_lists_the_others(plugin, monkeypatch, tmp_path):
    plugin(description("NVIDIA L4"))
    monkeypatch.setattr(targets, "CARDS", tmp_path)
    with pytest.raises(UserError, match=r"cannot compile for h100: .* Choose one of l4$"):
        find_target(H100)


def test_without_the_plugin_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: make setup-compile$"):
        plugin_library()

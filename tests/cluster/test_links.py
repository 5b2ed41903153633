"""The links between devices: the lines about them, and the advice if they are slow."""

import re
import time
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from gptjax.cluster import links
from gptjax.cluster.links import (  # fmt: skip
    LinkError,
    advice,
    bus_bandwidth,
    check_links,
    connect,
    nvidia_smi,
    peer_access,
    within,
)
from gptjax.config.presets import load_config

MATRIX = """ \tGPU0\tGPU1\tGPU2\t
 GPU0\tX\t{0}\t{1}\t
 GPU1\t{0}\tX\t{1}\t
 GPU2\t{1}\t{1}\tX\t

Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
"""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("OK", "OK", "yes"), ("CNS", "CNS", "no"), ("OK", "CNS", "1 of 3 pairs")],
)
def test_peer_access_is_read_from_the_matrix(first, second, expected):
    assert peer_access(MATRIX.format(first, second)) == expected


@pytest.mark.parametrize("text", ["", "GPU0\tX", "No devices were found"])
def test_peer_access_may_be_unknown(text):
    assert peer_access(text) == "unknown"


def test_a_measurement_that_hangs_names_what_to_try():
    began = time.monotonic()
    with pytest.raises(LinkError) as caught:
        within(0.05, lambda: time.sleep(60) or 1.0)
    assert time.monotonic() - began < 10
    for word in ("0 seconds", "NCCL_DEBUG=INFO", "NCCL_SOCKET_IFNAME", "NCCL_P2P_DISABLE=1"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 75


def test_a_measurement_that_fails_says_so():
    with pytest.raises(LinkError, match="a reduction over all devices failed: division by zero"):
        within(10, lambda: 1 / 0)
    assert within(10, lambda: 3.0) == 3.0


def test_bandwidth_is_what_crosses_a_link(monkeypatch):
    """Seven eighths of the bytes, twice, in the shortest of the times."""
    ticks = iter([0.0, 4.0, 4.0, 6.0, 6.0, 9.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert bus_bandwidth(2**20, 3) == pytest.approx(2 * 7 / 8 * 2**20 / 2)


def gpt2(**train) -> links.Config:
    config = load_config("gpt2_124m")
    return replace(config, train=replace(config.train, **train))


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("config", "kind", "bandwidth", "words"),
    [
        (gpt2(), H100, 300e9, []),
        # 2 x 7/8 x 498 MB at 4 GB/s, of 2^19 tokens at 8 x 496k a second
        (gpt2(), H100, 4e9, ["218 ms a step, 148% of", "bfloat16", "--train.batch-tokens"]),
        (gpt2(wire_dtype="bfloat16"), H100, 4e9, ["109 ms a step, 74%", "batch-tokens"]),
        (gpt2(batch_tokens=2**24), H100, 12e9, ["slow links, but the gradients take 73 ms"]),
        (gpt2(), "unknown", 30e9, []),
        (gpt2(), "unknown", 10e9, ["87 ms a step; try --train.wire-dtype bfloat16"]),
    ],
)
def test_advice_is_given_where_the_reduction_takes_more_than_a_tenth(
    config, kind, bandwidth, words
):
    found = "\n".join(advice(config, kind, 8, bandwidth))
    assert bool(found) == bool(words)
    for word in words:
        assert word in found
    if config.train.wire_dtype == "bfloat16":
        assert "wire" not in found


def test_processors_get_one_line_and_only_a_number_is_reduced(monkeypatch):
    monkeypatch.setattr(links, "bus_bandwidth", None)
    (line,) = check_links(load_config("tiny"))
    assert re.fullmatch(
        r"links    8 x cpu in 1 process: CPUs, all-reduce of a number [\d,.]+ ms", line
    )


def test_devices_that_do_not_meet_end_the_start(monkeypatch):
    monkeypatch.setattr(links, "max_over_processes", lambda number: lambda: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(LinkError, match="8 devices did not end within 0 seconds"):
        connect(0.05)
    assert time.monotonic() - began < 10


class Device:
    device_kind, platform = H100, "gpu"


@pytest.fixture
def eight_gpus(monkeypatch, tmp_path) -> Path:
    """Eight devices by jax's account, and the directory that PATH leads to first."""
    monkeypatch.setattr(jax, "devices", lambda: [Device()] * 8)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_gpus_get_driver_peer_access_bandwidth_and_advice(eight_gpus, monkeypatch):
    script = eight_gpus / "nvidia-smi"
    script.write_text(
        '#!/bin/sh\ncase "$*" in\n*driver_version*) echo 570.86; echo 570.86;;\n'
        f"'topo -p2p r') cat <<'END'\n{MATRIX.format('CNS', 'CNS')}END\nesac\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(links, "bus_bandwidth", lambda *_: 4e9)
    monkeypatch.setattr(links, "connect", lambda: 0.001)
    first, second = check_links(gpt2())
    assert first == (
        "links    8 x NVIDIA H100 80GB HBM3 in 1 process, driver 570.86, peer access no, "
        "all-reduce 4.0 GB/s (bus, 64 MiB a device)"
    )
    assert "slow links" in second


def test_nvidia_smi_may_be_missing_or_broken(eight_gpus):
    assert nvidia_smi("topo") == ""
    script = eight_gpus / "nvidia-smi"
    script.write_text("#!/bin/sh\necho broken\nexit 9\n")
    script.chmod(0o755)
    assert nvidia_smi("topo") == ""


def test_a_single_device_has_no_links(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert check_links(gpt2()) == []

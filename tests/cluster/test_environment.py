"""What jax and XLA would answer with a traceback, or an end of the process, is one sentence."""

import logging
import os
import subprocess
import sys
import threading

import jax
import pytest
from conftest import ROOT

from gptjax.cluster import environment
from gptjax.cluster.devices import POOL_SHARE
from gptjax.cluster.environment import (
    DeviceError,
    EnvironmentProblem,
    check_training,
    compute_deterministically,
    find_devices,
)
from gptjax.cluster.plugins import accelerator_plugins
from gptjax.cluster.stop import StopRequest

START = """
from gptjax.base.errors import UserError
from gptjax.cluster.environment import find_devices
try:
    print(len(find_devices()))
except UserError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("variable", "answer"),
    [
        ("JAX_DISABLE_JIT=maybe", "EnvironmentProblem jax does not accept JAX_DISABLE_JIT=maybe"),
        ("JAX_NUM_CPU_DEVICES=x", "EnvironmentProblem jax does not accept JAX_NUM_CPU_DEVICES=x"),
        ("XLA_FLAGS=--xla_no=1", "EnvironmentProblem XLA does not accept XLA_FLAGS=--xla_no=1"),
        (
            "XLA_FLAGS=--xla_cpu_enable_fast_math=perhaps",
            "EnvironmentProblem XLA does not accept XLA_FLAGS=--xla_cpu_enable_fast_math=perhaps: "
            "Couldn't interpret value",
        ),
        (
            "JAX_DEFAULT_DEVICE=gpu",
            "EnvironmentProblem JAX_PLATFORMS=cpu, JAX_DEFAULT_DEVICE=gpu: jax finds no such",
        ),
        (
            "JAX_PLATFORM_NAME=gpu",
            "EnvironmentProblem JAX_PLATFORMS=cpu, JAX_PLATFORM_NAME=gpu: jax finds no such",
        ),
        pytest.param(
            "JAX_PLATFORMS=cuda",
            "EnvironmentProblem JAX_PLATFORMS=cuda: jax finds no such device",
            marks=pytest.mark.skipif(bool(accelerator_plugins()), reason="there may be"),
        ),
        (
            "XLA_CLIENT_MEM_FRACTION=most",
            "EnvironmentProblem XLA_CLIENT_MEM_FRACTION=most is no share of a GPU's memory",
        ),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.5", "1"),
        ("JAX_PLATFORMS=none", "EnvironmentProblem JAX_PLATFORMS=none: jax finds no such device"),
        ("XLA_FLAGS=--xla_force_host_platform_device_count=2", "2"),
        ("CUDA_VISIBLE_DEVICES=", "1"),
    ],
)
def test_a_variable_works_or_is_named_in_one_line(variable, answer):
    name, _, value = variable.partition("=")
    result = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", name: value},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith(answer)


# what the train verb had set before it checks jax, and what jax's plugin would then take
SHARE = """
import importlib, os, sys
door = importlib.import_module("gptjax.train")
assert "jax" not in sys.modules
def checked():
    from jaxlib.xla_client import generate_pjrt_gpu_plugin_options
    print(generate_pjrt_gpu_plugin_options()["memory_fraction"])
    sys.exit(0)
door.check_training = checked
sys.argv = ["train", "--config", "tiny"]
door.main(door.train)
"""
NEW, OLD = environment.SHARES


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, POOL_SHARE),
        ({NEW: "", OLD: ""}, POOL_SHARE),
        ({NEW: "0.5"}, 0.5),
        ({OLD: "0.6"}, 0.6),
        ({NEW: "0.5", OLD: "0.6"}, None),
    ],
    ids=["none", "empty", "new", "old", "both"],
)
def test_training_takes_its_share_of_a_gpu_unless_the_user_says_another(given, share):
    environ = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **given}
    words = [sys.executable, "-c", SHARE]
    result = subprocess.run(words, capture_output=True, text=True, env=environ)
    if share is None:
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.endswith(f"are two names of one setting: unset {OLD}\n")
    else:
        assert (result.returncode, result.stderr) == (0, "")
        assert float(result.stdout) == share


def test_devices_that_do_not_answer_may_answer_another_start(monkeypatch):
    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda': busy (set JAX_PLATFORMS='' to)")

    monkeypatch.setattr(jax, "devices", fails)
    with pytest.raises(DeviceError, match=r"busy$") as caught:
        find_devices()
    assert caught.value.exit_code == 75


def test_a_warning_of_the_search_becomes_a_note(monkeypatch, capsys, caplog):
    def warns():
        logger = logging.getLogger("jax._src.xla_bridge")
        logger.warning("An NVIDIA GPU may be present.\nTraceback")
        logger.info("nothing")
        return ["cpu"]

    monkeypatch.setattr(jax, "devices", warns)
    assert find_devices() == ["cpu"]
    assert capsys.readouterr().err == "note: An NVIDIA GPU may be present\n"
    assert caplog.records == []


def test_a_guard_against_every_copy_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "_setting", {"jax_transfer_guard": "disallow"}.get)
    with pytest.raises(EnvironmentProblem, match=r"Unset JAX_TRANSFER_GUARD$"):
        find_devices()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_disable_jit", True),
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_a_setting_that_makes_other_programs_is_refused(name, value):
    check_training()
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(EnvironmentProblem) as caught:
            check_training()
    finally:
        jax.config.update(name, before)
    assert caught.value.exit_code == 2
    assert f"{name.upper()} is {value}" in str(caught.value)
    assert str(caught.value).endswith(f"Unset {name.upper()}")


def test_another_thread_than_the_main_one_handles_no_signals():
    seen = []

    def requests() -> None:
        with StopRequest() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=requests)
    thread.start()
    thread.join()
    assert seen == [False]


def test_flags_are_read_by_another_process_only_where_there_are_any(monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(subprocess, "run", never)
    environment._check_xla_flags()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("--a=1", "--a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_a_deterministic_run_asks_xla_unless_the_user_has(monkeypatch, given, after):
    monkeypatch.setenv("XLA_FLAGS", given)
    compute_deterministically()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.slow
def test_this_jax_knows_the_flag(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_gpu_deterministic_ops=true")
    found = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    assert found.stdout.strip() == "8", found.stderr

"""Compiled programs are kept by type of processor and within bounds; a full disk is no obstacle."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ROOT

from gptjax.cluster import compiler
from gptjax.cluster.compiler import compiler_options, enable_compilation_cache, host_tag

SCRIPT = """
from gptjax.cluster.environment import import_jax
import_jax()
from gptjax.cluster.compiler import enable_compilation_cache, watching_cache
directory = enable_compilation_cache()
import jax
with watching_cache() as use:
    jax.jit(lambda x: x * 3 + 1)(2.0)
with watching_cache() as nothing:
    pass
print(directory, use, nothing, sep="\\n")
"""


@pytest.fixture
def start(tmp_path):
    """Run SCRIPT as a process of its own, since jax opens its cache once."""

    def run(**environment: str) -> tuple[list[str], str]:
        base = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path / "home")}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=base | environment,
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return result.stdout.splitlines(), result.stderr

    return run


def test_a_program_is_compiled_once_for_all_starts(start, tmp_path):
    directory = tmp_path / "home" / ".cache" / "gptjax" / "xla" / host_tag()
    assert start() == ([str(directory), "no", "off"], "")
    kept = list(directory.iterdir())
    assert kept
    assert start() == ([str(directory), "yes", "off"], "")
    assert list(directory.iterdir()) == kept


@pytest.mark.parametrize("chosen", ["cache", ""])
def test_the_users_cache_directory_is_taken_if_it_is_absolute(start, tmp_path, chosen):
    home = tmp_path / chosen if chosen else tmp_path / "home" / ".cache"
    found, _ = start(XDG_CACHE_HOME=str(home) if chosen else "relative")
    assert Path(found[0]).parent == home / "gptjax" / "xla"
    assert list(Path(found[0]).iterdir())


def test_jaxs_own_variable_decides(start, tmp_path):
    chosen = tmp_path / "chosen"
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(chosen),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert start(**environment)[0] == [str(chosen), "no", "off"]
    assert start(**environment)[0] == [str(chosen), "yes", "off"]
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_costs_a_sentence(start, tmp_path):
    (tmp_path / "home").write_text("not a directory")
    found, errors = start()
    assert found == ["None", "off", "off"]
    (line,) = errors.splitlines()
    assert line.startswith("note: compiled programs are not kept for the next start: ")


def test_programs_in_a_directory_that_cannot_be_written_are_read(tmp_path, monkeypatch, capsys):
    def fails(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler.tempfile, "TemporaryFile", fails)
    set_to: dict[str, object] = {}
    monkeypatch.setattr(compiler.jax.config, "update", set_to.__setitem__)
    directory = enable_compilation_cache()
    assert directory == tmp_path / "gptjax" / "xla" / host_tag()
    assert set_to["jax_compilation_cache_dir"] == str(directory)
    assert "No space left" in capsys.readouterr().err


def test_a_chosen_directory_that_cannot_be_made_costs_the_same_sentence(start, tmp_path):
    (tmp_path / "file").touch()
    _, errors = start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "cache"))
    (line,) = errors.splitlines()
    assert line.startswith("note: compiled programs are not kept for the next start: ")


def test_devices_that_jax_has_found_stay_as_they_are(monkeypatch, capsys):
    found = jax.device_count()  # now, with the flags that the tests of this process count on
    monkeypatch.delenv("XLA_FLAGS")
    for asked, note in ((found, ""), (3, "train.cpu_devices 3 comes too late")):
        compiler.divide_processor(asked)
        said = capsys.readouterr().err
        assert note in said
        assert bool(said) == bool(note)
    assert jax.device_count() != 3


X86 = "processor\t: 0\nmodel name\t: A\nflags\t\t: sse avx\ncpu MHz\t\t: 2400.1\n\n"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (X86.replace("2400.1", "800.0"), True),
        (X86 + X86.replace(": 0", ": 1"), True),
        (X86.replace("avx", "avx avx512f"), False),
        (X86.replace(": A", ": B"), False),
    ],
)
def test_the_tag_is_that_of_the_type_of_processor(tmp_path, other, same):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(X86)
    two.write_text(other)
    assert (host_tag(one) == host_tag(two)) == same


def test_the_tag_of_an_unknown_processor_is_still_a_name(tmp_path):
    assert host_tag(tmp_path / "missing").replace("-", "").replace("_", "").isalnum()


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    (tmp_path / "sub").mkdir()
    for age, name in enumerate(["newest", "sub/middle", "old", "oldest"]):
        path = tmp_path / name
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 500))
    compiler._prune(tmp_path, 400)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 4
    compiler._prune(tmp_path, 250)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"newest", "middle"}


class Libc:
    """A C library that takes thresholds up to `largest`."""

    def __init__(self, largest: int):
        self.largest = largest
        self.taken: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        is_taken = value % 2**64 <= self.largest  # it becomes an unsigned long
        if is_taken:
            self.taken.append((option, value))
        return int(is_taken)


def test_an_older_glibc_keeps_its_adaptive_thresholds(monkeypatch):
    new, old = Libc(2**64 - 1), Libc(2**25)
    monkeypatch.setattr(compiler, "accelerator_plugins", set)
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: new)
    assert compiler.keep_freed_memory(10**6) is True
    assert new.taken == [(-3, -1), (-1, -1), (-2, 2**26), (-8, 2)]
    assert compiler.keep_freed_memory(10**8) is True
    assert new.taken[-1] == (-8, 1)  # two pools would not hold a large model's buffers
    monkeypatch.setattr(ctypes, "CDLL", lambda _: old)
    assert compiler.keep_freed_memory(10**6) is False
    assert old.taken == []


def test_only_processors_and_glibc_are_concerned(monkeypatch):
    libc = Libc(2**64 - 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    with monkeypatch.context() as patch:
        patch.setattr(compiler.sys, "platform", "darwin")
        assert compiler.keep_freed_memory(10**6) is False
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    monkeypatch.setattr(compiler, "accelerator_plugins", set)
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "accelerator_plugins", lambda: {"jax_plugins.xla_cuda12"})
        assert compiler.keep_freed_memory(10**6) is False
    assert libc.taken == []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert compiler.keep_freed_memory(10**6) is False


FAULTS = """
import ctypes, resource
from gptjax.cluster.compiler import keep_freed_memory
assert {keep} == ({keep} and keep_freed_memory(10**6))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 256 * 2**20
def touch():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(ctypes.c_void_p(block), 1, size)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="about glibc's malloc"
)
def test_pages_of_freed_memory_are_touched_once():
    faults = {}
    for keep in (False, True):
        result = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, check=True,
        )  # fmt: skip
        faults[keep] = int(result.stdout)
    assert faults[True] <= 2 < 32 < faults[False]  # 128 huge pages of 2 MiB, or more small ones


COUNT = """
import sys
from gptjax.cluster.compiler import divide_processor
divide_processor(int(sys.argv[1]))
import jax
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("asked", "environment", "found"),
    [
        (1, {}, 1),
        (3, {}, 3),
        (3, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 2),
        (3, {"JAX_NUM_CPU_DEVICES": "4"}, 4),
    ],
)
def test_the_processor_counts_as_several_devices_unless_the_environment_says(
    asked, environment, found
):
    base = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", COUNT, str(asked)], env=base | environment,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout == f"{found}\n"


OF_LEVEL = {"optimization_level"} if jax.__version_info__ >= (0, 11) else set()


@pytest.mark.parametrize(
    ("platform", "fsdp", "level", "names"),
    [
        ("gpu", 1, "UNKNOWN", {"xla_disable_hlo_passes"}),
        ("gpu", 8, "UNKNOWN", {"xla_disable_hlo_passes", *OF_LEVEL}),
        ("gpu", 8, "O2", {"xla_disable_hlo_passes"}),
        ("cpu", 8, "UNKNOWN", {"xla_cpu_enable_concurrency_optimized_scheduler"}),
        ("tpu", 8, "UNKNOWN", set()),
    ],
)
def test_the_devices_of_the_mesh_decide_the_options(platform, fsdp, level, names):
    device = SimpleNamespace(platform=platform)
    mesh = SimpleNamespace(devices=np.full((1, fsdp, 1), device), shape={"fsdp": fsdp})
    jax.config.update("jax_optimization_level", level)
    try:
        options = compiler_options(mesh)  # pyright: ignore[reportArgumentType]
        jax.jit(lambda x: x + 1).lower(1.0).compile(options)  # this jax knows them all
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
    assert set(options) == names

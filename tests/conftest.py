"""Shared by all tests: eight virtual devices in this process, small data, subprocess runs."""

import fcntl
import functools
import gc
import inspect
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# LLVM's optimisation of what XLA emits takes a third of the suite's time and proves nothing here,
# and each program gets one module instead of one for every core
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib") == "0.10.2":  # later ones have MLIR's emitters alone, which take as long again
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{COMPILE_QUICKLY} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="gptjax-tests-")  # not the user's caches
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nor the real hub: nobody is there

# of a shell's background job it is ignored, and would be by every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from hub_server import Hub, serve

from gptjax.config import DataConfig
from gptjax.config.presets import load_config
from gptjax.data.manifest import Manifest
from gptjax.planning.counts import GPU
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import text_files
from gptjax.runs.bookkeeping import GOODPUT, SECONDS, SPENT
from gptjax.runs.directory import RunDir
from gptjax.tokenizers.bpe import BPETokenizer

pytest_plugins = ["fault_report"]
jax.config.update("jax_numpy_rank_promotion", "raise")

# The collector would look through jax's millions of objects again and again.
gc.set_threshold(50_000, 20, 50)


def _find_source_once() -> None:
    """Let tyro read the source of a dataclass once, not for every command line that it parses."""
    find, once = inspect.findsource, functools.cache(inspect.findsource)
    inspect.findsource = lambda thing: once(thing) if isinstance(thing, type) else find(thing)


_find_source_once()


def pytest_collection_finish() -> None:
    """Nothing that is loaded by now goes away before the end."""
    gc.collect()
    gc.freeze()


ROOT = Path(__file__).parent.parent
# further cases of what another case proves; .ci/run leaves them out to stay within its time
EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The directory of real test data; skips where there is none."""
    path = Path(os.environ.get("GPTJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data in {path}: set GPTJAX_TEST_DATA")
    return path


def made_up_text() -> str:
    """About 200 kB of sentences of made-up words, the same for ever: what is learnt from it too."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(chance.choices(syllables, k=chance.choice((1, 2, 2, 3)))) for _ in range(2000)]
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law
    sentences = []
    for _ in range(4000):
        sentence = " ".join(chance.choices(words, frequencies, k=chance.randint(4, 16)))
        sentences.append(sentence.capitalize() + chance.choice(".,:!?\n") + "\n")
    return "".join(sentences)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`made_up_text` in a file."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(made_up_text())
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Manifest:
    """`text_file` as bytes, in shards of 4,096 tokens so that windows cross many of them."""
    out = tmp_path_factory.mktemp("data") / "bytes"
    data = DataConfig(path=str(out), tokenizer="bytes", inputs=(str(text_file),), val_fraction=0.1)
    return prepare_shards(data, text_files(data.inputs), shard_tokens=4096)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, prepared: Manifest) -> Path:
    """A run of 20 steps to read: checkpoints at 10 and 20, validated, with an average.

    It is trained once for all of xdist's workers; the first one that needs it does that.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    with (session / "trained_run.txt").open("a+") as place:
        fcntl.flock(place, fcntl.LOCK_EX)
        place.seek(0)
        if found := place.read():
            return Path(found)
        run = _train(tmp_path_factory.mktemp("trained"), prepared)
        place.write(str(run))
    return run


def _train(cwd: Path, prepared: Manifest) -> Path:
    settings = {
        "config": "tiny", "data.path": prepared.directory.resolve(), "run-dir": "run",
        "train.max-steps": 20, "train.save-every-steps": 10, "train.eval-every-steps": 10,
        "train.eval-tokens": 512, "optim.ema-decay": 0.9, "model.n-ctx": 256,
        "model.unroll": 1, "train.micro-batch": 1, "train.preflight": "off",
    }  # fmt: skip
    trained = run_verb("train", *(f"--{k}={v}" for k, v in settings.items()), cwd=cwd)
    assert trained.returncode == 0, trained.stderr
    return cwd / "run"


@pytest.fixture(scope="module")
def one_compilation_for_all(tmp_path_factory) -> Iterator[None]:
    """Let the processes of one file share compiled programs: they are the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which this process and those it starts take for the real one."""
    with serve(tmp_path / "hub") as server:
        from huggingface_hub import constants

        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def gpt2_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory to work in, with the runs that shipped configs start from; without parameters."""
    tokenizer = BPETokenizer("gpt2", {bytes([i]): i for i in range(256)})
    for name, shape in (("gpt2", "gpt2_124m"), ("gpt2_774m", "gpt2_774m")):
        (tmp_path / "runs" / name / "checkpoints" / "0").mkdir(parents=True)
        RunDir(tmp_path / "runs" / name).begin(load_config(shape), tokenizer)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def newest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for the newest jax, whose figures documents give, whatever is installed."""
    monkeypatch.setattr("gptjax.planning.memory.gpu_counts", lambda: GPU)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one number that `time.perf_counter` shows from now on."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def without_speed(row: dict) -> dict:
    """A row of metrics.jsonl without what differs between two runs of the same."""
    clocked = ("tokens_per_second", "mfu", "data_wait", GOODPUT, SECONDS, SPENT)
    return {k: v for k, v in row.items() if k not in clocked}


def environment_on(devices: int) -> dict[str, str]:
    """What a process of gptjax runs in, anywhere, on so many virtual devices."""
    flags = f"{COMPILE_QUICKLY} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def run_verb(verb: str, *args: object, cwd: Path, devices: int = 1) -> subprocess.CompletedProcess:
    """Run `python -m gptjax.VERB` as a user would."""
    command = [sys.executable, "-m", f"gptjax.{verb}", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment_on(devices), capture_output=True, text=True
    )

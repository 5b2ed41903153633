"""The checks before the first step: what they find, what they say, and that they leave nothing."""

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from conftest import without_speed
from small_runs import Heard, tiny_on

from gptjax.base.errors import UserError
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.cluster.watchdog import Watchdog
from gptjax.config import Config
from gptjax.runs.checkpoint import Checkpointer, SaveError
from gptjax.runs.directory import RunDir
from gptjax.runs.trace import Startup
from gptjax.training import preflight
from gptjax.training.fit import fit
from gptjax.training.measuring import Measuring
from gptjax.training.preflight import LESS_MEMORY, Preflight, PreflightError
from gptjax.training.program import Program
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.trial import SCRATCH, Trial

QUIET = {"train.eval_every_steps": 0, "train.sample_every_steps": 0, "train.stall_seconds": 0}


class Tables(Heard):
    """A display that remembers the tables as well."""

    def __init__(self):
        super().__init__()
        self.results: dict[str, str] = {}

    def table(self, title: str, header: Any, rows: list[tuple[str, str, str]]) -> None:
        self.results |= {name: result for name, result, _ in rows}


class Checks(NamedTuple):
    """A preflight, and what is around it."""

    preflight: Preflight
    display: Tables
    stop: StopRequest
    phases: Phases


@pytest.fixture
def checks(prepared, tmp_path):
    """Makes the preflight of a run in `tmp_path`, from fields of its config."""
    opened = []

    def make(fields: dict[str, Any] | None = None) -> Checks:
        setup = Setup(tiny_on(prepared, {"train.preflight": "on", **QUIET, **(fields or {})}))
        display, stop, phases = Tables(), StopRequest(), Phases(Watchdog(0))
        checkpointer = Checkpointer(tmp_path / "checkpoints")
        opened.append(checkpointer)
        measuring = Measuring(setup, stop, phases.heartbeat, display)  # pyright: ignore
        around = display, stop, phases, Startup(time.perf_counter())
        made = Preflight(setup, RunDir(tmp_path), checkpointer, measuring, *around)  # pyright: ignore
        return Checks(made, display, stop, phases)

    yield make
    for checkpointer in opened:
        checkpointer.close()


@pytest.fixture
def without_trial(monkeypatch):
    """A trial of programs ends the test."""
    monkeypatch.setattr(Trial, "checks", lambda self: pytest.fail("a trial was made"))


def fail_with(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    return fail


MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nof 2 GB")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/checkpoints")


@pytest.mark.parametrize("check", LESS_MEMORY)
def test_too_little_memory_is_a_mistake_with_a_remedy_for_each_check(checks, check):
    with pytest.raises(PreflightError) as caught:
        checks().preflight._make([(check, fail_with(MEMORY))])
    assert caught.value.exit_code == 1
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"preflight, {check}: out of memory (RESOURCE_EXHAUSTED: Out of memory)")
    assert "--train." in line
    assert "--train.preflight off" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("no prompt"), 1), (SaveError("no room"), 74), (FULL, 74), (MemoryError(), 1)],
)
def test_the_kind_of_a_failure_decides_the_exit_code(checks, error, code):
    with pytest.raises(PreflightError, match=r"^preflight, save: ") as caught:
        checks().preflight._make([("save", fail_with(error))])
    assert caught.value.exit_code == code


def test_a_bug_keeps_its_traceback_and_a_line_says_how_to_start_without_the_trial(checks):
    made = checks()
    with pytest.raises(ZeroDivisionError):
        made.preflight._make([("sample", lambda: str(1 // 0))])
    assert made.display.lines == [
        "preflight, sample: ZeroDivisionError. --train.preflight off starts without this trial"
    ]


def test_a_stop_request_ends_the_checks(checks):
    made, done = checks(), []

    def stop() -> str:
        made.stop.signal = signal.SIGTERM
        return ""

    assert not made.preflight._make([("a", stop), ("b", lambda: done.append(1) or "")])
    assert done == []


def test_a_start_that_resumes_makes_the_cheap_checks_alone(checks, without_trial, monkeypatch):
    made = checks({"data.verify": "full"})
    monkeypatch.setattr(Checkpointer, "steps", lambda self: [5])
    assert made.preflight.passed()
    assert list(made.display.results) == ["all-reduce", "disk space", "data", "tokenizer"]
    shards = sum(len(s.shards) for s in made.preflight._setup.data.manifests[0].splits.values())
    assert made.display.results["data"].startswith(f"{shards} of {shards} shards (")
    assert made.display.results["tokenizer"].startswith("bytes, fingerprint ")
    assert made.phases.so_far()[Phase.PREFLIGHT] > 0


def test_off_leaves_the_data_and_the_links(checks, without_trial, tmp_path):
    (tmp_path / SCRATCH / "checkpoints").mkdir(parents=True)  # of a start that was killed
    RunDir(tmp_path).check()
    made = checks({"train.preflight": "off", "data.verify": "off"})
    assert made.preflight.passed()
    assert list(made.display.results) == ["all-reduce", "data", "tokenizer"]
    assert "not compared" in made.display.results["data"]
    assert not (tmp_path / SCRATCH).exists()


def test_a_damaged_shard_is_refused(checks, without_trial, monkeypatch):
    monkeypatch.setattr(preflight, "fault_of", lambda shard, progress: f"{shard.path} is bad")
    with pytest.raises(PreflightError, match=r"^preflight, data: .*\.bin is bad") as caught:
        checks().preflight.passed()
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["samples.md", "loss.png"])
def test_a_directory_where_a_sample_or_a_plot_belongs_is_found_before_anything_compiles(
    checks, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(Program, "compile", fail_with(AssertionError("compiled")))
    (tmp_path / name).mkdir()
    with pytest.raises(PreflightError, match=rf"^preflight, plot: .*{name} is a directory"):
        checks({"train.sample_every_steps": 5}).preflight.passed()
    assert not (tmp_path / SCRATCH).exists()


def test_only_what_the_run_will_do_is_tried(checks):
    def tried(fields: dict[str, Any]) -> list[str]:
        made = checks(fields).preflight
        showing: Any = None
        around: Any = made._display, made._stop, made._phases, made._startup
        one = Trial(made._setup, Path("checkpoints"), made._measuring, showing, *around)
        return [name for name, _ in one.checks()]

    always = ["plot", "compilation", "train step", "save", "restore"]
    assert tried({}) == always
    more = {"train.eval_every_steps": 5, "train.sample_every_steps": 5}
    assert [name for name in tried(more) if name not in always] == ["validation", "sample"]


def short(prepared, **fields: Any) -> Config:
    everything = {
        "train.max_steps": 4, "train.eval_every_steps": 2, "train.sample_every_steps": 2,
        "train.save_every_steps": 2, "train.eval_tokens": 1024, "model.unroll": 1,
        "sample.prompt": "", "sample.max_new_tokens": 6, "optim.ema_decay": 0.9,
    }  # fmt: skip
    return tiny_on(prepared, {"train.preflight": "on"} | everything | fields)


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


@pytest.mark.slow
def test_a_trial_changes_nothing_and_compiles_nothing_twice(prepared, tmp_path, monkeypatch):
    """Neither the step nor the evaluation nor the sampler: `sample` lowers nothing later."""
    compiled, tables = [], []
    compile_step = Program.compile
    monkeypatch.setattr(
        Program, "compile", lambda *args: compiled.append("step") or compile_step(*args)
    )
    end = Trial._end
    monkeypatch.setattr(Trial, "_end", lambda self: (end(self), tables.append(tracing(self)))[0])

    def tracing(self: Trial) -> Any:
        assert self._state is None
        return self._setup.program.eval_step._cache_size()  # pyright: ignore

    assert fit(short(prepared), tmp_path / "with") == 0
    assert compiled == ["step"]
    assert tables == [1]
    assert not (tmp_path / "with" / SCRATCH).exists()
    assert fit(short(prepared, **{"train.preflight": "off"}), tmp_path / "without") == 0
    assert rows(tmp_path / "with") == rows(tmp_path / "without")
    for name in ("samples.md", "ranking.json"):
        assert (tmp_path / "with" / name).read_text() == (tmp_path / "without" / name).read_text()
    said = (tmp_path / "with" / "log.txt").read_text()
    order = ["all-reduce", "disk space", "data", "tokenizer", "plot", "compilation", "train step"]
    order += ["validation", "sample", "save", "restore"]
    places = [said.index(f"\n  {name}  ") for name in order]
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "error", "code", "words"),
    [
        (Checkpointer, "save", SaveError("no room"), 74, "preflight, save: no room"),
        (Checkpointer, "restore", UserError("damaged"), 1, "preflight, restore: damaged"),
    ],
)
def test_a_trial_that_fails_leaves_nothing(
    prepared, tmp_path, monkeypatch, owner, name, error, code, words
):
    def draw(self: Trial) -> str:
        self._state = self._setup.program.initial_state()
        return ""

    monkeypatch.setattr(owner, name, fail_with(error))
    monkeypatch.setattr(Setup, "compile_steps", lambda self, step: None)
    monkeypatch.setattr(Trial, "_step", draw)
    with pytest.raises(UserError, match=words) as caught:
        fit(short(prepared, **QUIET, **{"optim.ema_decay": None}), tmp_path)
    assert caught.value.exit_code == code
    assert not (tmp_path / SCRATCH).exists()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_stop_request_in_the_middle_ends_the_run_with_its_code(prepared, tmp_path, monkeypatch):
    rehearse = Showing.rehearse_plot

    def plot_and_signal(self: Showing, directory: Path) -> None:
        rehearse(self, directory)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Showing, "rehearse_plot", plot_and_signal)
    monkeypatch.setattr(Program, "compile", fail_with(AssertionError("compiled")))
    with pytest.raises(SystemExit) as ended:  # one process with nothing to save leaves at once
        fit(short(prepared), tmp_path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / SCRATCH).exists()

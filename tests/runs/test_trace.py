"""Start-up adds up from the process's beginning; a trace holds whole steps and only those."""

import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from gptjax.runs import trace
from gptjax.runs.trace import Startup, StepTrace, process_began


def test_phases_add_up_from_the_beginning_and_are_told_once(clock):
    said = []
    startup = Startup(97.5)
    for phase, seconds, note in [
        ("imports", 0.0, ""), ("setup", 0.5, ""), ("initialisation", 1.0, ""),
        ("setup", 0.25, ""), ("compilation", 9.0, "cached: no"),
    ]:  # fmt: skip
        clock[0] += seconds
        startup.end(phase, note)
    clock[0] += 0.4
    startup.finish(said.append)
    clock[0] += 5.0
    startup.finish(said.append)
    assert said == [
        "start-up  imports 2.5 s, setup 0.8 s, initialisation 1.0 s, compilation 9.0 s "
        "(cached: no), first step 0.4 s; 13.7 s in all"
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_knows_when_it_began():
    """Measured from outside: before it was started, and until it looked."""
    script = (
        "import time; time.sleep(0.5); from gptjax.runs.trace import process_began;"
        "now = time.perf_counter(); print(time.time() - (now - process_began(now)))"
    )
    before = time.time()
    result = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert before - 0.05 <= float(result.stdout) <= before + 0.4


@pytest.mark.parametrize(
    "stat", [None, "", "1 (a) b) S", "1 (x) S " + "y " * 30, "1 (x) S " + "0 " * 30]
)
def test_without_a_credible_account_a_later_moment_serves(stat, clock, monkeypatch):
    def read_text(_: Path) -> str:
        if stat is None:
            raise FileNotFoundError
        return stat

    monkeypatch.setattr(trace.Path, "read_text", read_text)
    monkeypatch.setattr(trace.time, "clock_gettime", lambda _: 10_000.0)
    assert process_began(clock[0]) == clock[0]


@pytest.mark.parametrize(("age", "began"), [(5.0, 996.0), (0.5, 1000.0), (700.0, 1000.0)])
def test_a_process_began_a_little_before_its_imports(age, began, clock, monkeypatch):
    """One that is far older was something else before, as under `exec`."""
    clock[0] = 1001.0
    ticks = round((10_000 - age) * os.sysconf("SC_CLK_TCK"))
    stat = "1 (a b) S " + "0 " * 18 + f"{ticks} 0"
    monkeypatch.setattr(trace.Path, "read_text", lambda _: stat)
    monkeypatch.setattr(trace.time, "clock_gettime", lambda _: 10_000.0)
    assert process_began(1000.0) == began


def run(window: str | None, directory: Path, first: int, last: int, max_steps: int) -> tuple:
    """Steps `first` to `last` as the loop makes them: messages, and steps told as window ends.

    The run ends at `max_steps` or is stopped before.
    """
    said: list[str] = []
    ends = []
    trace = StepTrace(window, directory, said.append)
    work = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jnp.ones((8, 8))
    try:
        trace.begin(first - 1, max_steps)
        for step in range(first, last + 1):
            with trace.annotate(step):
                x = work(x)
            if trace.after(step, x):
                ends.append(step)
    finally:
        trace.close()
    return said, ends


def traced(directory: Path) -> list[int]:
    """The steps that the one trace in `directory` marks; both its forms have to be there."""
    (path,) = directory.glob("plugins/profile/*/perfetto_trace.json.gz")
    (planes,) = directory.glob("plugins/profile/*/*.xplane.pb")
    assert b"step_num" in planes.read_bytes()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [e for e in events if e.get("name") == "step"]
    return sorted(int(e["args"]["step_num"]) for e in marks)


def test_a_window_within_a_run_is_traced(tmp_path):
    said, ends = run("3:2", tmp_path, 1, 8, 8)
    assert traced(tmp_path) == [4, 5]
    assert ends == [3, 5]
    assert len(said) == 1
    assert said[0].startswith("traced steps 4 to 5: open ")
    named = re.search(r"open (\S+) in", said[0])
    assert named is not None
    assert Path(named[1]).is_file()
    assert f"xprof --logdir {tmp_path}" in said[0]


def test_a_window_may_begin_with_the_run(tmp_path):
    assert run("0:1", tmp_path, 1, 3, 3)[1] == [1]
    assert traced(tmp_path) == [1]


def test_a_window_may_begin_where_a_run_goes_on(tmp_path):
    run("5:2", tmp_path, 6, 8, 8)
    assert traced(tmp_path) == [6, 7]


def test_a_run_that_is_stopped_within_the_window_still_has_its_trace(tmp_path):
    said, _ = run("2:50", tmp_path, 1, 4, 100)
    assert traced(tmp_path) == [3, 4]
    assert said[-1].startswith("traced steps 3 to 4: ")


def test_a_stop_right_before_the_window_is_told(tmp_path):
    said, ends = run("2:50", tmp_path, 1, 2, 100)
    assert ends == [2]
    assert said == ["stopped before the first step of the trace"]


def test_a_window_beyond_the_end_is_announced_and_traced_as_far_as_it_goes(tmp_path):
    said, _ = run("2:9", tmp_path, 1, 4, 4)
    assert "2:9 reaches beyond step 4, the last one: 2 steps will be traced" in said[0]
    assert traced(tmp_path) == [3, 4]


@pytest.mark.parametrize(("window", "first"), [("4:1", 1), ("9:1", 1), ("1:2", 3)])
def test_a_window_outside_this_start_traces_nothing_and_says_so(window, first, tmp_path):
    said, ends = run(window, tmp_path, first, 4, 4)
    assert said == [
        f"note     train.profile {window} traces nothing: this start goes from step "
        f"{first - 1} to 4"
    ]
    assert ends == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_window_nothing_happens(tmp_path):
    assert run(None, tmp_path, 1, 3, 3) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    directory = tmp_path / "profile"
    directory.write_text("in the way")
    said, _ = run("1:1", directory, 1, 3, 3)
    directory.unlink()
    with contextlib.suppress(RuntimeError):  # jax 0.10 keeps the trace that it could not write, for
        jax.profiler.stop_trace()  # the next test to find; newer ones have dropped it
    assert len(said) == 1
    assert f"the trace could not be written to {directory}" in said[0]

"""A signal in any phase of a run: one exit code, nothing lost, and the run goes on to the same end.

One process starts the run again and again and signals itself at a chosen call, so that every signal
meets every phase. What depends on the process itself has processes of its own: a device that hangs,
nohup, several processes.
"""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import EXHAUSTIVE
from killed_runs import (
    assert_same_run,
    checkpoints,
    ended,
    rows,
    start,
    trained,
    wait_until,
    written,
)
from paired_runs import ended_pair, start_pair

from gptjax.cluster import stop as stopping
from gptjax.cluster.stop import STOPS, StopRequest
from gptjax.data.manifest import Manifest

STEPS = 72
BEFORE_STEPS = {
    "imports": ("gptjax.train", "import_jax", 1),
    "opening": ("gptjax.training.fit", "open_run", 1),
    "preflight": ("gptjax.training.preflight:Preflight", "passed", 1),
    "restoring": ("gptjax.training.fit", "restore_or_start", 1),
    "compiling": ("gptjax.training.setup:Setup", "compile_steps", 1),
}
"""Phases in which nothing was trained yet: what is called in them, and the call that matters."""
IN_STEPS = {
    "training": ("gptjax.training.setup:Setup", "train_steps", 3),
    "evaluation": ("gptjax.training.validating", "evaluate_parts", 1),
    "sampling": ("gptjax.training.showing", "sample_after", 1),
    "saving": ("gptjax.runs.checkpoint:Checkpointer", "save", 1),
    "waiting for a save": ("gptjax.runs.checkpoint:Checkpointer", "wait", 2),
    "plotting": ("gptjax.training.showing", "plot_curves", 1),
}
AGAIN_AND_AGAIN = """
import importlib, json, os, sys
from pathlib import Path
from gptjax.train import train
from gptjax.cluster import stop
stop.LEAVE_SECONDS = stop.CLEAN_SECONDS = 60.0  # here the process goes on

def count(path):
    return len(path.read_text().splitlines()) if path.exists() else 0

def start(where, name, call, number, times):
    module, _, kind = where.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    real, calls = getattr(owner, name), []
    def signalled(*args, **options):
        calls.append(1)
        for _ in range(times if len(calls) == call else 0):
            os.kill(os.getpid(), number)
        return real(*args, **options)
    setattr(owner, name, signalled)
    try:
        return train(sys.argv[1:])
    except SystemExit as left:
        return left.code
    except KeyboardInterrupt:
        return 130
    finally:
        setattr(owner, name, real)

run = Path("run")
times = int(os.environ["TIMES"])
for phase, moment, number in json.loads(os.environ["MOMENTS"]):
    before, code = count(run / "metrics.jsonl"), start(*moment, number, times)
    steps = [int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()]
    found = [phase, number, code, before, count(run / "metrics.jsonl"), max(steps, default=0)]
    print("signalled", json.dumps(found), flush=True)
"""


def options(data: Manifest, steps: int = STEPS) -> list[str]:
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.n-layer", 1, "--model.n-embd", 16, "--model.n-head", 2, "--model.n-ctx", 32),
        *("--model.unroll", 1, "--model.embd-pdrop", 0.1, "--optim.warmup-steps", 10),
        *("--train.batch-tokens", 128, "--train.micro-batch", 4, "--train.max-steps", steps),
        *("--train.save-every-steps", 5, "--train.eval-every-steps", 4, "--train.eval-tokens", 128),
        *("--train.sample-every-steps", 8, "--sample.max-new-tokens", 2),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken")
    trained(options(prepared), directory)
    return directory


# What a request does


@pytest.mark.parametrize("number", STOPS)
def test_each_signal_is_noted_and_has_one_code(number):
    with StopRequest() as stop:
        assert (bool(stop), stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_code) == (number, 128 + number)


@pytest.mark.parametrize("number", STOPS)
def test_where_nothing_is_to_be_saved_a_signal_leaves_at_once(number):
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(expected) as left, StopRequest(defers=False):
        os.kill(os.getpid(), number)
    assert getattr(left.value, "code", 130) == 128 + number


@pytest.mark.parametrize("number", STOPS)
def test_an_error_that_was_made_of_a_signal_is_that_signal(number):
    """As XLA makes one of what is raised in a host callback."""
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit

    def callback() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise RuntimeError("a callback failed") from error

    with pytest.raises(expected), StopRequest(defers=False):
        callback()


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Every signal in every phase


def signalled(data: Manifest, cwd: Path, monkeypatch, moments: list, times: int = 1):
    """Phase, signal, exit code, rows before and after, and newest step of each start; all said.

    After a start for each moment, at which the signal comes so many times, one goes to the end.
    """
    monkeypatch.setenv("MOMENTS", json.dumps(moments))
    monkeypatch.setenv("TIMES", str(times))
    said = trained(options(data), cwd, AGAIN_AND_AGAIN)
    found = [json.loads(line) for line in re.findall(r"^signalled (.*)$", said, re.MULTILINE)]
    assert [(phase, number) for phase, number, *_ in found] == [(p, n) for p, _, n in moments]
    return found, said


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    "half", [0, pytest.param(1, marks=EXHAUSTIVE)], ids=["half of all pairs", "the other half"]
)
def test_a_signal_in_any_phase_loses_nothing(
    prepared, tmp_path, unbroken, report, monkeypatch, half
):
    moments = [  # the first makes the preflight, which a start that resumes leaves out
        ("training", IN_STEPS["training"], int(signal.SIGTERM)),
        *(
            (phase, moment, int(number))
            for i, number in enumerate(STOPS)
            for j, (phase, moment) in enumerate({**BEFORE_STEPS, **IN_STEPS}.items())
            if (i + j) % 2 == half
        ),
    ]
    found, said = signalled(prepared, tmp_path, monkeypatch, moments)
    for phase, number, code, before, now, saved in found:
        assert code == 128 + number, (phase, number, said)
        assert now == saved, (phase, number, said)
        assert (now == before) == (phase in BEFORE_STEPS), (phase, number, said)
        report(f"signal while {phase}", lost=now - saved)
    assert "Traceback" not in said
    assert_same_run(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_second_ctrl_c_in_any_phase_leaves_at_once(
    prepared, tmp_path, unbroken, report, monkeypatch
):
    """Nothing more is saved, and what was saved before stays."""
    phases = {"training": IN_STEPS["training"], **BEFORE_STEPS, **IN_STEPS}
    moments = [(phase, moment, int(signal.SIGINT)) for phase, moment in phases.items()]
    found, said = signalled(prepared, tmp_path, monkeypatch, moments, 2)
    newest = 0
    for phase, _, code, _, now, saved in found:
        assert code == 130, (phase, said)
        assert newest <= saved <= now, (phase, said)
        newest = saved
        report(f"two SIGINT while {phase}", lost=None)
    assert "Traceback" not in said
    assert_same_run(tmp_path, unbroken)


# What needs a process of its own

QUICK = ["--train.preflight", "off"]

IN_C = """
import ctypes
from gptjax.training.setup import Setup
went_on, calls = Setup.{name}, []
def hang(self, *args):
    calls.append(1)
    if len(calls) == {call}:
        open("hangs", "w").close()
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)  # for ever, and no signal ends it
    return went_on(self, *args)
Setup.{name} = hang
"""


def hangs(cwd: Path) -> bool:
    return (cwd / "hangs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    ("name", "call", "sent", "code"),
    [
        ("train_steps", 7, [signal.SIGTERM, signal.SIGINT], 130),
        pytest.param("train_steps", 7, [signal.SIGINT] * 2, 130, marks=EXHAUSTIVE),
        ("compile_steps", 1, [signal.SIGTERM], 143),
        pytest.param("compile_steps", 1, [signal.SIGHUP], 129, marks=EXHAUSTIVE),
    ],
)
def test_a_device_that_hangs_holds_nobody_who_leaves(
    prepared, tmp_path, name, call, sent, code, report
):
    """The main thread waits in C, where Python's own handler never comes."""
    hook = IN_C.format(name=name, call=call)
    process = start([*options(prepared), *QUICK], tmp_path, 1, hook)
    wait_until(lambda: hangs(tmp_path), process)
    for number in sent:
        process.send_signal(number)
        if number != sent[-1]:
            with pytest.raises(subprocess.TimeoutExpired):  # it waits to save
                process.wait(2.5 * stopping.LEAVE_SECONDS)
    process.wait(15)
    found, said = ended(process)
    assert found == code, said
    assert f"{sent[0].name}: stopping" in said
    assert "Traceback" not in said
    assert max(checkpoints(tmp_path), default=0) == call // 5 * 5
    report("signals while a device hangs", lost=None)


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_closed_terminal_does_not_end_a_run_under_nohup(prepared, tmp_path, report):
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup does
    process = start([*options(prepared, 40), *QUICK], tmp_path, 1, ignoring)
    wait_until(lambda: written(tmp_path) > 5, process)
    process.send_signal(signal.SIGHUP)
    code, said = ended(process)
    assert code == 0, said
    assert len(rows(tmp_path)) == 40
    report("SIGHUP under nohup")


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    ("sent", "to"),
    [
        (signal.SIGHUP, 1),
        *(pytest.param(s, to, marks=EXHAUSTIVE) for s in STOPS for to in (0, 1)),
    ],
)
def test_all_processes_stop_after_the_same_step(prepared, tmp_path, sent, to, report):
    pair = start_pair([*options(prepared), *QUICK], tmp_path)
    wait_until(lambda: written(tmp_path) > 5, pair[0])
    pair[to].send_signal(sent)
    codes, said = ended_pair(pair)
    assert codes == [128 + sent] * 2, said
    done = len(rows(tmp_path))
    assert 5 < done < STEPS
    assert f"stopped by {sent.name} after step {done}." in said
    assert max(checkpoints(tmp_path)) == done
    report("signal to one of two processes")


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_signal_to_one_of_two_while_they_compile_trains_nothing(prepared, tmp_path, report):
    signalled = """
import os, signal, sys
from gptjax.training.setup import Setup
went_on = Setup.compile_steps
def compile_steps(self, step):
    if sys.argv[-1] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    went_on(self, step)
Setup.compile_steps = compile_steps
"""
    codes, said = ended_pair(start_pair([*options(prepared), *QUICK], tmp_path, signalled))
    assert codes == [138, 138], said
    assert not checkpoints(tmp_path)
    assert written(tmp_path) == 0
    report("signal to one of two processes")

"""What hangs or dies ends, soon and with a code that is tried again: a call, a disk, a peer.

The limits that were promised are measured here: a peer's death is over for all within 15 s, and a
hang within its limit and 5 s more. A host callback that sleeps stands for a device that never
returns.
"""

import re
import signal
import time

import pytest
from conftest import EXHAUSTIVE
from killed_runs import checkpoints, ended, start, trained, wait_until, written
from paired_runs import ended_pair, start_pair

from gptjax.cluster.peers import LostPeerError
from gptjax.cluster.phases import FIRST, LONG, SAID, Phase, Phases
from gptjax.cluster.watchdog import PATIENCE, StallError, Watchdog
from gptjax.data.manifest import Manifest

STEPS, LIMIT = 40, 4  # seconds of --train.stall-seconds
PEER_SECONDS = 15.0  # from a peer's death to the end of all others
LATER = 5.0  # seconds that the end may come after a limit
HANG = """
import importlib, sys, time
from pathlib import Path
def hang_at(where, name, call):
    module, _, kind = where.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    went_on, calls = getattr(owner, name), []
    def hang(*args, **options):
        calls.append(1)
        is_first_of_two = sys.argv[-2:] == ["--process", "0"]
        if len(calls) == call and not is_first_of_two and not Path("hangs").exists():
            Path("hangs").touch()
            time.sleep(600)
        return went_on(*args, **options)
    setattr(owner, name, hang)
hang_at({!r}, {!r}, {!r})
"""
ON_THE_DEVICE = """
import jax, time
from pathlib import Path
from gptjax.training.setup import Setup
went_on, calls = Setup.train_steps, []
def sleep(x):
    Path("hangs").touch()
    time.sleep(600)
    return x
def hang(self, *args):
    calls.append(1)
    if len(calls) == 9 and not Path("hangs").exists():
        with jax.transfer_guard("allow"):
            one = jax.ShapeDtypeStruct((), "float32")
            jax.jit(lambda x: jax.pure_callback(sleep, one, x))(1.0).block_until_ready()
    return went_on(self, *args)
Setup.train_steps = hang
"""
WITHOUT_DEVICES = """
import jax, time
from pathlib import Path
from gptjax.cluster import compiler
went_on = compiler.find_devices
def hang():
    if not Path("hangs").exists():
        Path("hangs").touch()
        time.sleep(600)
    return went_on()
compiler.find_devices = hang
"""
SHOWN = "gptjax.training.showing"
CASES = {
    "a device in a step": (ON_THE_DEVICE, Phase.TRAINING, 1),
    "no device answers": (WITHOUT_DEVICES, None, 1),
    "opening the run": (
        HANG.format("gptjax.runs.directory:RunDir", "check", 1), Phase.START, FIRST
    ),
    "restoring": (
        HANG.format("gptjax.runs.checkpoint:Checkpointer", "restore", 1), Phase.RESTORING, FIRST
    ),
    "the first step": (
        HANG.format("gptjax.training.setup:Setup", "train_steps", 1), Phase.TRAINING, FIRST
    ),
    "a save": (
        HANG.format("orbax.checkpoint:CheckpointManager", "save", 2),
        Phase.SAVING, LONG[Phase.SAVING],
    ),
    "waiting for a save": (
        HANG.format("orbax.checkpoint:CheckpointManager", "wait_until_finished", 2),
        Phase.SAVING, LONG[Phase.SAVING],
    ),
    "a validation": (
        HANG.format("gptjax.training.validating", "evaluate_parts", 2), Phase.EVALUATION, 1
    ),
    "a sample": (HANG.format(SHOWN, "sample_after", 2), Phase.SHOWING, 1),
    "a plot": (HANG.format(SHOWN, "plot_curves", 2), Phase.SHOWING, 1),
}  # fmt: skip
"""What hangs: the lines that make it, the phase, and its limit in `LIMIT`s."""
IN_CI = ("a device in a step", "a save")


def options(data: Manifest, *more: object) -> list[str]:
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.n-layer", 1, "--model.n-embd", 16, "--model.n-head", 2, "--model.n-ctx", 32),
        *("--model.unroll", 1, "--model.embd-pdrop", 0.1, "--optim.warmup-steps", 10),
        *("--train.batch-tokens", 128, "--train.micro-batch", 4, "--train.max-steps", STEPS),
        *("--train.save-every-steps", 5, "--train.eval-every-steps", 20),
        *("--train.eval-tokens", 128, "--train.sample-every-steps", 20),
        *("--sample.max-new-tokens", 2, "--train.preflight", "off"),
        *more,
    ]
    return [str(value) for value in values]


# The limits


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_limit(phase):
    """A compilation may always take ten minutes; the first of all is allowed six times as long."""
    watchdog = Watchdog(0)
    watchdog.seconds = 100
    phases = Phases(watchdog)
    if phase == Phase.WAITING:  # counted within training, and never entered
        return
    for phase_is_new in (True, False):
        with phases.during(phase):
            wait = watchdog._wait
            assert wait is not None
            assert wait.what == SAID[phase]
            assert wait.what not in watchdog._longest or not phase_is_new
            assert wait.first == max(600.0, FIRST * 100)
            assert wait.floor == {Phase.COMPILING: 600.0}.get(phase, LONG.get(phase, 1) * 100)
    with phases.during(phase), phases.waiting_for_0():
        assert watchdog._wait is None
    assert PATIENCE == 10


# One process


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=() if w in IN_CI else EXHAUSTIVE) for w in CASES]
)
def test_a_process_that_hangs_ends_within_its_limit_and_goes_on(prepared, tmp_path, what, report):
    lines, phase, limits = CASES[what]
    args = options(prepared, "--train.stall-seconds", LIMIT)
    process = start(args, tmp_path, 1, lines)
    wait_until((tmp_path / "hangs").exists, process)
    began = time.monotonic()
    code, said = ended(process)
    took = time.monotonic() - began
    assert code == StallError.exit_code, said
    said_of = "no device was found" if phase is None else SAID[phase]
    (allowed,) = re.findall(rf"error: {said_of} for ([\d,]+) s", said)
    assert int(allowed.replace(",", "")) >= limits * LIMIT
    assert took < int(allowed.replace(",", "")) + LATER
    assert re.search(r"in (hang|sleep)$", said, re.MULTILINE)  # the stack of the thread that does
    kept = max(checkpoints(tmp_path), default=0)
    said = trained(args, tmp_path, lines)
    assert f"resuming run after step {kept}" in said or kept == 0
    report(f"hang: {what}", lost=None, note="ends within its limit")


# Several processes


def start_training_pair(prepared, cwd, *more, within=()):
    """A pair that has trained for some steps, and is to train for ever."""
    forever = ("--train.max-steps", 10**6, "--train.eval-every-steps", 0)
    args = options(prepared, *forever, "--train.sample-every-steps", 0, *more)
    pair = start_pair(args, cwd, within=within)
    wait_until(lambda: written(cwd) > 12, pair[0])
    return pair


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize(
    "killed", [0, 1, *(pytest.param(i, marks=EXHAUSTIVE) for i in (0, 1, 0, 1))]
)
def test_the_death_of_a_peer_is_over_for_all_in_15_seconds(prepared, tmp_path, killed, report):
    pair = start_training_pair(prepared, tmp_path)
    pair[killed].kill()
    began = time.monotonic()
    pair[1 - killed].wait(120)
    took = time.monotonic() - began
    codes, said = ended_pair(pair)
    assert codes[1 - killed] == LostPeerError.exit_code, said
    assert took < PEER_SECONDS, said
    assert said.count(str(LostPeerError())) == 1
    for noise in ("Traceback", "stack trace", "terminate called"):
        assert noise not in said
    report(f"SIGKILL of process {killed} of 2", lost=None, note="all ended in < 15 s")


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_save_that_fails_because_a_peer_died_is_told_as_its_death(prepared, tmp_path, report):
    lines, _, _ = CASES["a save"]
    pair = start_pair(options(prepared), tmp_path, lines)
    wait_until((tmp_path / "hangs").exists, pair[0])
    pair[1].kill()
    codes, said = ended_pair(pair)
    assert codes == [LostPeerError.exit_code, -signal.SIGKILL], said
    assert said.count(str(LostPeerError())) == 1
    assert "could not be written" not in said
    report("SIGKILL of process 1 of 2 in a save", lost=None, note="told as what it is")


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=EXHAUSTIVE)])
def test_a_peer_that_is_stopped_ends_all_within_the_limit(prepared, tmp_path, stopped, report):
    limit = 12
    pair = start_training_pair(prepared, tmp_path, "--train.stall-seconds", limit)
    pair[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    pair[1 - stopped].wait(120)
    took = time.monotonic() - began
    pair[stopped].send_signal(signal.SIGCONT)
    codes, said = ended_pair(pair)
    assert codes == [StallError.exit_code] * 2, said
    assert took < limit + LATER, said
    report(f"SIGSTOP of process {stopped} of 2", lost=None, note="all ended within the limit + 5 s")


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
def test_a_save_that_hangs_on_one_process_ends_both(prepared, tmp_path, report):
    lines, phase, limits = CASES["a save"]
    pair = start_pair(options(prepared, "--train.stall-seconds", LIMIT), tmp_path, lines)
    wait_until((tmp_path / "hangs").exists, pair[0])
    began = time.monotonic()
    codes, said = ended_pair(pair)
    assert codes == [StallError.exit_code] * 2, said
    allowed = max(int(s.replace(",", "")) for s in re.findall(r" for ([\d,]+) s \(train", said))
    assert allowed >= limits * LIMIT
    assert time.monotonic() - began < allowed + LATER
    assert SAID[phase] in said
    report("hang: a save on one process of 2", lost=None, note="ends within its limit")

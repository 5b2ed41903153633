"""Which process of a run this is, from flags or the environment, and how processes agree."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import jax
import pytest
from conftest import environment_on

from gptjax.base.errors import UserError
from gptjax.cluster import agreement, processes
from gptjax.cluster.agreement import (
    BUG,
    broadcast_from_0,
    is_process_0,
    max_over_processes,
    on_process_0,
    require_same,
)
from gptjax.cluster.processes import Launch, MeetingError, find_launch, local_devices
from gptjax.cluster.stop import StopRequest
from gptjax.runs.directory import LOCK

BATCH_SHELL = {  # what a batch script sees before any srun
    "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "gpu[07-09]", "SLURM_NNODES": "3",
    "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
STEP = BATCH_SHELL | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_PROCID": "2", "SLURM_NODEID": "2",
}  # fmt: skip
SLURM_PORT = 61440 + 123456 % 4096
MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_LOCAL_RANK": "5", "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}  # fmt: skip
POD = {
    "JOB_COMPLETION_INDEX": "1", "GPTJAX_PROCESSES": "2",
    "GPTJAX_COORDINATOR": "gptjax-0.gptjax:8476",
}  # fmt: skip
SKY = {
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.9"
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (BATCH_SHELL, None),
        (STEP, Launch(f"gpu07:{SLURM_PORT}", 3, 2)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),8", "SLURM_STEP_NUM_TASKS": "12",
                    "SLURM_PROCID": "9", "SLURM_LOCALID": "5"},
            Launch(f"gpu07:{SLURM_PORT}", 12, 9, 5, 8),
        ),
        (STEP | {"SLURM_STEP_NODELIST": "b-1,a"}, Launch(f"b-1:{SLURM_PORT}", 3, 2)),
        (STEP | {"SLURM_STEP_NODELIST": "r[1-2]n[01,07].org,a"},
         Launch(f"r1n01.org:{SLURM_PORT}", 3, 2)),
        (MPI, Launch("10.96.0.1:8476", 16, 5, 5, 8)),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "8"}, Launch("127.0.0.1:8476", 8, 5, 5, 8)),
        (
            MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp6://[fe80::1,2620::2]:43370"},
            Launch("[fe80::1]:8476", 16, 5, 5, 8),
        ),
        (STEP | MPI, Launch("10.96.0.1:8476", 16, 5, 5, 8)),
        (POD, Launch("gptjax-0.gptjax:8476", 2, 1)),
        ({"JOB_COMPLETION_INDEX": "3"}, None),
        (SKY, Launch("10.0.0.4:8476", 2, 1)),
        (SKY | {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, None),
        (SKY | POD, Launch("gptjax-0.gptjax:8476", 2, 1)),
    ],
)  # fmt: skip
def test_launchers_say_which_process_this_is(environment, expected):
    assert find_launch(environment) == expected


def test_flags_win_over_the_environment():
    assert find_launch(STEP, "a:1", 2, 1) == Launch("a:1", 2, 1)
    assert find_launch(STEP, None, 1, 0) is None
    assert find_launch(MPI, "head:99") == Launch("head:99", 16, 5, 5, 8)


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({}, ("a:1", 2, None), "--processes and --process belong together"),
        ({}, ("a:1", None, 0), "--processes and --process belong together"),
        ({}, (None, 2, 0), "--processes needs --coordinator HOST:PORT"),
        ({}, ("a:1", None, None), "--coordinator was given"),
        ({}, ("a:1", 2, 2), "the command line says process 2 of 2"),
        ({}, ("a:1", 0, 0), "the command line says process 0 of 0"),
        ({}, ("a", 2, 0), "expected HOST:PORT"),
        ({}, ("a:70000", 2, 0), "expected HOST:PORT"),
        (STEP | {"SLURM_PROCID": "x"}, (), "SLURM_PROCID must be a count, not 'x'"),
        (STEP | {"SLURM_PROCID": "3"}, (), "Slurm says process 3 of 3"),
        (STEP | {"SLURM_LOCALID": "x"}, (), "SLURM_LOCALID must be a count, not 'x'"),
        (STEP | {"SLURM_STEP_NODELIST": ""}, (), "give --coordinator HOST:PORT"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (), "OMPI_COMM_WORLD_RANK must be a count"),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": ""}, (), "give --coordinator HOST:PORT"),
        ({"GPTJAX_PROCESSES": "2"}, (), "JOB_COMPLETION_INDEX must be a count"),
        ({"GPTJAX_COORDINATOR": "a:1"}, (), "GPTJAX_PROCESSES must be a count"),
        (POD | {"GPTJAX_COORDINATOR": ""}, (), "expected HOST:PORT"),
        (SKY | {"SKYPILOT_NODE_IPS": ""}, (), "SkyPilot says that process 1 of 2 finds its"),
        (SKY | POD | {"JOB_COMPLETION_INDEX": "0"}, (),
         "contradictory things about this process (Kubernetes: process 0 of 2; SkyPilot: process"),
    ],
)  # fmt: skip
def test_what_is_half_said_or_contradictory_is_refused(environment, flags, words):
    with pytest.raises(UserError) as caught:
        find_launch(environment, *flags)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("local", "visible", "expected"),
    [
        ((0, 1), "0,1,2,3", None),
        ((3, 8), None, [3]),
        ((1, 2), "0,1,2,3,4,5,6,7", [4, 5, 6, 7]),
        ((1, 2), "5", None),
        ((1, 2), "", None),
    ],
)
def test_processes_of_a_node_share_its_gpus(local, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert local_devices(Launch("a:1", 8, 3, *local), environment) == expected


def test_gpus_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="2 processes on this node cannot share the 3 GPUs"):
        local_devices(Launch("a:1", 2, 0, 0, 2), {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_one_process_agrees_with_itself(monkeypatch):
    monkeypatch.setattr(agreement, "multihost_utils", None)  # nothing to ask
    assert is_process_0()
    assert broadcast_from_0(1 / 3) == 1 / 3
    assert on_process_0(lambda: "done") == "done"
    require_same("anything", "at all")
    assert max_over_processes(15)() == 15


def test_a_number_crosses_processes_unrounded(monkeypatch):
    """jax itself would make a float32 of it."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.multihost_utils, "broadcast_one_to_all", jax.numpy.asarray)
    for number in (1 / 3, float("inf"), -1.0, 2.0**53 - 1):
        assert broadcast_from_0(number) == number


def test_a_mistake_of_the_first_process_ends_the_others_with_its_code(monkeypatch):
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "broadcast_from_0", lambda code: told.append(code) or told[0])

    def fail() -> None:
        raise UserError("taken")

    with pytest.raises(UserError, match="taken"):
        on_process_0(fail)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(agreement.Followed) as caught:
        on_process_0(fail)
    assert caught.value.exit_code == 1
    assert told == [1, 0]


def test_processes_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    gathered = {"process_allgather": lambda mine: [mine, mine, mine + 1, mine]}
    monkeypatch.setattr(agreement, "multihost_utils", type("Fake", (), gathered))
    with pytest.raises(
        UserError, match=r"the data is not the same on all 4 processes: process 2 and"
    ):
        require_same("the data", "a")


class Wire:
    """Finds the largest of two processes' numbers, as devices would: after both have asked."""

    def __init__(self):
        self.numbers: dict[int, list[int]] = {0: [], 1: []}

    def of(self, process: int) -> Callable[[int], Callable[[], int]]:
        def ask(number: int) -> Callable[[], int]:
            mine = self.numbers[process]
            mine.append(number)
            turn = len(mine) - 1
            return lambda: max(numbers[turn] for numbers in self.numbers.values())

        return ask


@pytest.mark.parametrize("signalled", [0, 1])
def test_processes_stop_at_the_same_turn_whichever_had_the_signal(signalled):
    wire = Wire()
    stops = [StopRequest(wire.of(0)), StopRequest(wire.of(1))]
    seen = []
    for turn in range(4):
        if turn == 1:
            with stops[signalled]:
                signal.raise_signal(signal.SIGTERM)
        assert not stops[1 - signalled] or stops[signalled]
        for stop in stops:
            stop.agree()
        seen.append([bool(stop) for stop in stops])
    assert seen == [[False, False], [False, False], [True, True], [True, True]]
    assert [stop.exit_code for stop in stops] == [143, 143]


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("UserError('no disk')", 1, "process 1: error: no disk\n"),
        ("ConfigError(['a'])", 2, "process 1: error: the configuration has 1 problem:\n  - a\n"),
        ("Followed(74)", 74, ""),
        ("KeyboardInterrupt()", 130, "process 1: stopped\n"),
        ("ValueError('bug')", BUG, "process 1: ValueError: bug\n"),
    ],
)
def test_a_process_that_fails_reports_and_leaves_past_everything(raised, code, words):
    script = f"""
from gptjax.cluster.environment import import_jax
import_jax()
import atexit, contextlib, jax
from gptjax.base.errors import *
from gptjax.cluster.agreement import *
atexit.register(print, "waited for the others")
jax.process_index, jax.process_count = lambda: 1, lambda: 2
with contextlib.ExitStack() as stack:
    stack.callback(print, "waited for a save")
    stack.push(exit_if_distributed)
    raise {raised}
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment_on(1), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.endswith(words)
    assert bool(result.stderr) == bool(words)


def test_a_coordinator_that_is_not_there_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{unused.getsockname()[1]}"  # bound, and not listening
        with pytest.raises(MeetingError, match=f"reached at {where}"):
            processes._reach(where, 0.3)


ALL_GPUS = """
import sys
from gptjax.cluster.processes import Launch, initialise
initialise(Launch(sys.argv[1], 1, 0))
"""


def test_a_slurm_task_that_is_alone_on_its_node_takes_all_gpus():
    """jax itself would take the one of the task's number, and would say so."""
    environment = environment_on(1) | STEP | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    environment["JAX_LOGGING_LEVEL"] = "INFO"
    words = [sys.executable, "-c", ALL_GPUS, free_address()]
    result = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    assert "Connecting to JAX distributed service" in result.stderr
    assert "visible devices" not in result.stderr


MEETS = """
import sys
from pathlib import Path
from gptjax.base.errors import UserError
from gptjax.cluster import agreement
from gptjax.cluster.processes import Launch, initialise

agreement.SIGHT_SECONDS = 0.5
initialise(Launch(sys.argv[1], 2, int(sys.argv[2])))
for directory in sys.argv[3:]:
    try:
        agreement.require_shared(Path(directory))
        print("shared")
    except UserError as error:
        print(error)
"""


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(words: Callable[[int], list[str]], cwds: list[Path]) -> list[subprocess.Popen]:
    """Two processes on one device each, in directories of their own, with what they say piped."""
    return [
        subprocess.Popen(
            [sys.executable, *words(i)], cwd=cwd, env=environment_on(1), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i, cwd in enumerate(cwds)
    ]  # fmt: skip


@pytest.fixture
def two_nodes(tmp_path) -> list[Path]:
    """The disks of two nodes: each has a directory r, the second with an older run's lock in it."""
    nodes = [tmp_path / name for name in ("node0", "node1")]
    for node in nodes:
        (node / "r").mkdir(parents=True)
    (nodes[1] / "r" / LOCK).write_text("")
    return nodes


@pytest.mark.slow
def test_a_directory_is_shared_if_a_token_crosses_it(two_nodes, tmp_path):
    (tmp_path / "together").mkdir()
    where = free_address()
    processes = start_two(
        lambda i: ["-c", MEETS, where, str(i), str(tmp_path / "together"), "r"], two_nodes
    )
    for process in processes:
        said, errors = process.communicate(timeout=60)
        first, second = said.splitlines()[-2:]  # after Gloo's
        assert first == "shared", errors
        assert second.startswith("process 1 cannot see r: the run directory must be on a file")
    assert [p.name for p in tmp_path.rglob("*.tmp")] == []


def test_a_file_that_is_seen_late_is_waited_for(tmp_path):
    path = tmp_path / "late"
    writer = Timer(0.3, path.write_text, ("token",))
    writer.start()
    assert agreement._shows(path, "token")
    writer.join()


@pytest.mark.slow
def test_a_run_on_disks_of_two_nodes_does_not_start(two_nodes, prepared):
    """Each would write its own half of every checkpoint."""
    flags = ["--config", "tiny", "--data.path", str(prepared.directory), "--run-dir", "r"]
    flags += [
        "--coordinator",
        free_address(),
        "--processes",
        "2",
        "--train.max-steps",
        "2",
        "--optim.warmup-steps",
        "2",
    ]
    processes = start_two(lambda i: ["-m", "gptjax.train", *flags, "--process", str(i)], two_nodes)
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: process 1 cannot see r: the run directory must be on" in ends[0][1]
    assert not [path for node in two_nodes for path in node.glob("r/checkpoints/*")]

"""Finds out which process of a run this is, and connects it with the others.

Flags say so, or the environment that Slurm, Open MPI, Kubernetes or SkyPilot sets. jax could read
the first three itself, but it would take one GPU for each task, mistake the shell of an interactive
Slurm job for several processes, need another package on Kubernetes, and abort a process that cannot
reach process 0 with a stack trace, which no Python code can catch.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Timer

import jax

from gptjax.base.errors import UserError
from gptjax.cluster.peers import ending_clearly

PORT = 8476  # of the coordinator, unless a job number gives another
QUIET_SECONDS = 10  # before a process says whom it waits for
MEETING_SECONDS = 900  # nodes may still be pulling images, or process 0 preparing data
HEARTBEAT_SECONDS = 10  # a process without a sign of life for so long counts as dead
SHUTDOWN_SECONDS = 120  # process 0 still draws curves after the others have ended


class MeetingError(UserError):
    """Process 0 is not there; another start may find it."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


@dataclass(frozen=True)
class Launch:
    """The place of one process among all processes, and among those of its node."""

    coordinator: str
    """HOST:PORT at which process 0 listens."""
    processes: int
    """Number of processes on all nodes, at least 2."""
    process: int
    """Number of this process, from 0."""
    local_process: int = 0
    """Number of this process on its node, from 0."""
    local_processes: int = 1
    """Number of processes on this node: one drives all its GPUs, several an equal share each."""


def find_launch(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Launch | None:
    """Which process this is, by its flags, else by its launcher's environment; None if it is alone.

    `coordinator` alone replaces the launcher's. Raises `UserError` if the settings are incomplete,
    contradictory or out of range.
    """
    if (processes is None) != (process is None):
        raise UserError("--processes and --process belong together: give both, or neither")
    if processes is not None and process is not None:
        if processes > 1 and coordinator is None:
            raise UserError("--processes needs --coordinator HOST:PORT, the address of process 0")
        return _checked("the command line", Launch(coordinator or "", processes, process))
    found = {
        name: read(environment)
        for name, (signs, read) in LAUNCHERS.items()
        if signs & environment.keys()
    }
    if "Open MPI" in found:
        found.pop("Slurm", None)  # inside Slurm, mpirun's daemons are the tasks
    if len({(launch.processes, launch.process) for launch in found.values()}) > 1:
        said = "; ".join(f"{k}: process {v.process} of {v.processes}" for k, v in found.items())
        raise UserError(
            f"the environment says contradictory things about this process ({said}): give "
            "--coordinator HOST:PORT --processes N --process I"
        )
    if not found:
        if coordinator is not None:
            raise UserError(
                "--coordinator was given, but neither flags (--processes N --process I) nor a "
                "launcher say how many processes there are"
            )
        return None
    name, launch = next(iter(found.items()))
    return _checked(name, replace(launch, coordinator=coordinator or launch.coordinator))


def _checked(source: str, launch: Launch) -> Launch | None:
    """The launch, None for a single process; raises `UserError` if it is impossible."""
    here = f"process {launch.process} of {launch.processes}"
    if launch.processes < 1 or not 0 <= launch.process < launch.processes:
        raise UserError(f"{source} says {here}; expected 0 to the number of processes - 1")
    if launch.processes == 1:
        return None
    host, _, port = launch.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"{source} says that {here} finds its coordinator at {launch.coordinator!r}; expected "
            "HOST:PORT: give --coordinator HOST:PORT"
        )
    return launch


def _number(environment: Mapping[str, str], name: str, otherwise: str = "") -> int:
    """A count from the environment; raises `UserError` if it is missing or something else."""
    value = environment.get(name, otherwise)
    if not value.isdecimal():
        found = f"not {value!r}" if value else "but it is not set"
        raise UserError(f"the environment's {name} must be a count, {found}")
    return int(value)


def _from_slurm(environment: Mapping[str, str]) -> Launch:
    """A task of an `srun` step (srun(1), "OUTPUT ENVIRONMENT VARIABLES").

    The shell of a batch script has a SLURM_PROCID too, but it is alone: a variable that only steps
    have tells them apart.
    """
    nodes = re.split(r",(?![^\[]*\])", environment.get("SLURM_STEP_NODELIST", ""))
    host = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes[0])  # r[1-2]n[01-07,09],b gives r1n01
    job = _number(environment, "SLURM_JOB_ID", "0")
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")  # 8(x2),4 is 8, 8 and 4
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", layout)
    counts = [int(count) for count, times in pairs for _ in range(int(times or 1))]
    return Launch(
        f"{host}:{61440 + job % 4096}",  # as jax does: jobs share nodes
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_PROCID"),
        _number(environment, "SLURM_LOCALID", "0"),
        dict(enumerate(counts)).get(_number(environment, "SLURM_NODEID", "0"), 1),
    )


def _from_open_mpi(environment: Mapping[str, str]) -> Launch:
    """A process of `mpirun`, which gives its own address; process 0 is assumed to run there."""
    processes = _number(environment, "OMPI_COMM_WORLD_SIZE")
    here = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    uri = re.search(r"tcp6?://(\[[^,\]]+|[^,:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    host = "127.0.0.1" if here == processes else uri[1] if uri else ""
    host += "]" if host.startswith("[") else ""
    return Launch(
        f"{host}:{PORT}",
        processes,
        _number(environment, "OMPI_COMM_WORLD_RANK"),
        _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", "0"),
        here,
    )


def _from_kubernetes(environment: Mapping[str, str]) -> Launch:
    """A pod of an indexed Job whose manifest sets GPTJAX_PROCESSES and GPTJAX_COORDINATOR."""
    return Launch(
        environment.get("GPTJAX_COORDINATOR", ""),
        _number(environment, "GPTJAX_PROCESSES"),
        _number(environment, "JOB_COMPLETION_INDEX"),
    )


def _from_skypilot(environment: Mapping[str, str]) -> Launch:
    """A node of a SkyPilot task, one process each."""
    addresses = environment.get("SKYPILOT_NODE_IPS", "").split() or [""]
    return Launch(
        f"{addresses[0]}:{PORT}",
        _number(environment, "SKYPILOT_NUM_NODES"),
        _number(environment, "SKYPILOT_NODE_RANK"),
    )


LAUNCHERS: dict[str, tuple[set[str], Callable[[Mapping[str, str]], Launch]]] = {
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE"}, _from_open_mpi),
    "Slurm": ({"SLURM_STEP_NUM_TASKS"}, _from_slurm),
    "Kubernetes": ({"GPTJAX_PROCESSES", "GPTJAX_COORDINATOR"}, _from_kubernetes),
    "SkyPilot": ({"SKYPILOT_NUM_NODES"}, _from_skypilot),
}
"""By name: variables, any of which shows this launcher, and the function that reads them."""


def local_devices(launch: Launch, environment: Mapping[str, str]) -> list[int] | None:
    """The numbers of the GPUs that this process takes; None for all that it can see.

    A single process on a node takes all. Several share the list in CUDA_VISIBLE_DEVICES equally, in
    order. If it lists one GPU, the scheduler has already dealt them out; if it is not set, each
    process takes one. Raises `UserError` if the list cannot be shared equally.
    """
    if launch.local_processes == 1:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [launch.local_process]
    count = len([word for word in visible.split(",") if word.strip()])
    if count <= 1:
        return None
    share, rest = divmod(count, launch.local_processes)
    if rest:
        raise UserError(
            f"{launch.local_processes} processes on this node cannot share the {count} GPUs of "
            f"CUDA_VISIBLE_DEVICES={visible} equally"
        )
    return list(range(launch.local_process * share, (launch.local_process + 1) * share))


def initialise(launch: Launch) -> None:
    """Connect with the other processes; call this before any device is touched.

    Process 0 listens from here on, and the others wait for it. If a process dies later, all end
    soon after `HEARTBEAT_SECONDS`. Raises `MeetingError` if process 0 cannot be reached, or if not
    all others come.
    """
    others = "the others" if launch.process == 0 else "process 0"
    patient = Timer(QUIET_SECONDS, _say_waiting, (launch, others))
    patient.daemon = True
    patient.start()
    try:
        if launch.process:
            _reach(launch.coordinator, MEETING_SECONDS)
        _meet(launch)
    except RuntimeError as error:
        raise MeetingError(
            f"process {launch.process} of {launch.processes} did not meet all others at "
            f"{launch.coordinator} within {MEETING_SECONDS / 60:.0f} minutes ({error}): do all of "
            "them run, with the same coordinator, and each with a number of its own?"
        ) from error
    finally:
        patient.cancel()


def _say_waiting(launch: Launch, others: str) -> None:
    print(
        f"process {launch.process} of {launch.processes}: waiting up to {MEETING_SECONDS // 60} "
        f"minutes for {others} at {launch.coordinator}",
        file=sys.stderr,
        flush=True,
    )


def _reach(coordinator: str, seconds: float) -> None:
    """Wait until process 0 listens: jax itself would end the process with a stack trace."""
    host, _, port = coordinator.rpartition(":")
    deadline, problem = time.monotonic() + seconds, OSError("no answer")
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            problem = error
            time.sleep(0.2)
    raise MeetingError(
        f"process 0 could not be reached at {coordinator} within {seconds / 60:.0f} minutes "
        f"({problem}): is it running, is the name right, and do firewalls let the port through?"
    )


def _meet(launch: Launch) -> None:
    # this service would take SIGTERM from the loop, which tells the other processes itself
    jax.config.update("jax_enable_preemption_service", False)
    with ending_clearly(launch.process):
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process,
            local_device_ids=local_devices(launch, os.environ),
            cluster_detection_method="deactivate",  # it would take only one GPU of a Slurm task
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )

"""Several processes as one run: which of them this one is, and where they meet.

Flags say so, or what Slurm, Open MPI, Kubernetes or SkyPilot set in the environment, which is read
by a function of a mapping, so that testing it takes no cluster.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from gptjax.errors import UserError

PORT = 8476  # of the coordinator, where no job number tells neighbours apart
MEETING_SECONDS = 900  # nodes may still be pulling images, or process 0 preparing data
HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as dead
SHUTDOWN_SECONDS = 120  # process 0 still draws curves when the others have ended


@dataclass(frozen=True)
class Launch:
    """One process's place among all. Processes of one node are numbered `local_process` as well."""

    coordinator: str
    """HOST:PORT at which process 0 listens."""
    processes: int
    """How many there are on all nodes, at least 2."""
    process: int
    """Which one this is, from 0."""
    local_process: int = 0
    """Which one on its node, from 0."""
    local_processes: int = 1
    """How many on this node: 1 drives all its GPUs, more drive an equal share each."""


def find_launch(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Launch | None:
    """Who this process is, by its flags or else by what its launcher set; None if it is alone.

    `coordinator` alone corrects what a launcher says. Raises `UserError` for what is half said,
    contradictory or out of range.
    """
    if (processes is None) != (process is None):
        raise UserError("--processes and --process belong together: give both, or neither")
    if processes is not None and process is not None:
        if processes > 1 and coordinator is None:
            raise UserError("--processes needs --coordinator HOST:PORT, the address of process 0")
        return _checked("the command line", Launch(coordinator or "", processes, process))
    readers = {
        "Open MPI": _from_open_mpi,
        "Slurm": _from_slurm,
        "Kubernetes": _from_kubernetes,
        "SkyPilot": _from_skypilot,
    }
    found = {name: launch for name, read in readers.items() if (launch := read(environment))}
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
    if coordinator is not None:
        launch = Launch(coordinator, *list(vars(launch).values())[1:])
    return _checked(name, launch)


def _checked(source: str, launch: Launch) -> Launch | None:
    """The launch if there is more than one process; raises `UserError` where it cannot be."""
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


def _number(environment: Mapping[str, str], name: str, beside: str) -> int:
    """A count from the environment; raises `UserError` where it is missing or no count."""
    value = environment.get(name)
    if value is None:
        raise UserError(f"the environment has {beside} and not {name}: set both, or neither")
    if not value.isdecimal():
        raise UserError(f"the environment's {name} must be a count, not {value!r}")
    return int(value)


def _from_slurm(environment: Mapping[str, str]) -> Launch | None:
    """A task of an `srun` step. The shell of a batch script has SLURM_PROCID too, and is alone.

    Variables: srun(1), "OUTPUT ENVIRONMENT VARIABLES".
    """
    if not {"SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"} & set(environment):
        return None
    step = "an srun step"
    counted = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    processes = _number(environment, counted, step)
    process = _number(environment, "SLURM_PROCID", step)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if processes > 1 and not nodes:
        raise UserError(f"the environment has {step} and neither of SLURM_STEP_NODELIST and "
                        "SLURM_JOB_NODELIST")  # fmt: skip
    host = expand_nodes(nodes)[0] if nodes else ""
    job = environment.get("SLURM_JOB_ID", "")
    port = 61440 + int(job) % 4096 if job.isdecimal() else PORT  # as jax does: jobs share nodes
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", layout)
        for _ in range(int(times or 1))
    ]
    node = environment.get("SLURM_NODEID", "0")
    here = counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 1
    local = environment.get("SLURM_LOCALID", "0")
    return Launch(f"{host}:{port}", processes, process, int(local) if here > 1 else 0, here)


def _from_open_mpi(environment: Mapping[str, str]) -> Launch | None:
    """A process of `mpirun`, which tells where it runs itself; process 0 is taken to be there."""
    if not {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"} & set(environment):
        return None
    processes = _number(environment, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    process = _number(environment, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    local, here = (
        int(environment.get(f"OMPI_COMM_WORLD_LOCAL_{name}", usual))
        for name, usual in (("RANK", "0"), ("SIZE", "1"))
    )
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    match = re.search(r"tcp://(.+?)[,:]|tcp6://(\[.+?)[,\]]", uri)
    host = "127.0.0.1" if here == processes else ""
    if match and not host:
        host = match[1] or match[2] + "]"
    return Launch(f"{host}:{PORT}", processes, process, local, here)


def _from_kubernetes(environment: Mapping[str, str]) -> Launch | None:
    """A pod of an indexed Job whose manifest sets GPTJAX_PROCESSES and GPTJAX_COORDINATOR."""
    if not {"GPTJAX_PROCESSES", "GPTJAX_COORDINATOR"} & set(environment):
        return None
    processes = _number(environment, "GPTJAX_PROCESSES", "GPTJAX_COORDINATOR")
    process = _number(environment, "JOB_COMPLETION_INDEX", "GPTJAX_PROCESSES")
    return Launch(environment.get("GPTJAX_COORDINATOR", ""), processes, process)


def _from_skypilot(environment: Mapping[str, str]) -> Launch | None:
    """A node of a SkyPilot task, one process each."""
    if "SKYPILOT_NUM_NODES" not in environment and "SKYPILOT_NODE_RANK" not in environment:
        return None
    processes = _number(environment, "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")
    process = _number(environment, "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES")
    addresses = environment.get("SKYPILOT_NODE_IPS", "").split()
    if processes > 1 and len(addresses) != processes:
        raise UserError(
            f"SKYPILOT_NODE_IPS has {len(addresses)} addresses for SKYPILOT_NUM_NODES {processes}"
        )
    return Launch(f"{addresses[0] if addresses else ''}:{PORT}", processes, process)


def expand_nodes(text: str) -> list[str]:
    """Host names of a Slurm node list: `a[01-03,07],b` is a01 a02 a03 a07 b.

    Raises `UserError` for what is no such list.
    """
    names: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        if not re.fullmatch(r"([^\[\],]+|\[\d+(-\d+)?(,\d+(-\d+)?)*\])+", part):
            raise UserError(f"cannot read the Slurm node list {text!r}")
        found = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([\d,-]+)\]", part):
            endings = [literal] if literal else _numbers(ranges)
            found = [name + ending for name in found for ending in endings]
        names += found
    return names


def _numbers(ranges: str) -> list[str]:
    """`01-03,07` as 01 02 03 07: the width of a range's first number is that of all."""
    found = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        found += [f"{number:0{len(first)}}" for number in numbers]
    return found


def local_devices(launch: Launch, environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs this process takes, by their numbers; None for all that it can see.

    One process a node takes all. Several share what CUDA_VISIBLE_DEVICES lists equally, in order;
    where it lists one, the scheduler has shared them out; where it is not set, there is one process
    for each. Raises `UserError` if they do not divide.
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
    """Meet the other processes; to be called before any device is touched.

    Process 0 listens from here on, the others wait for it. A process that dies afterwards ends all
    within `HEARTBEAT_SECONDS`.
    """
    # it would take SIGTERM away from the loop, which asks the other processes itself
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        launch.coordinator,
        launch.processes,
        launch.process,
        local_device_ids=local_devices(launch, os.environ),
        initialization_timeout=MEETING_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )

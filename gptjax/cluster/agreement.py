"""How the processes of a run agree, and how a failing process exits.

Every decision about the next action (a stop request, a checkpoint to restore, a loss to compare) is
made once and told to all: processes that decide differently wait for each other forever. So all
processes must call these functions together; only `exit_process` may be called by one alone. With
one process nothing here costs anything.
"""

import os
import secrets
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils  # jax's documented way to ask all processes
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gptjax.base.errors import UserError
from gptjax.cluster.peers import LAST_WORDS_SECONDS, as_user_error, speaks_last
from gptjax.cluster.phases import Phase, Phases

T = TypeVar("T")
BUG = 70  # exit code of an exception other than `UserError` (sysexits.h: EX_SOFTWARE)
COMPLAINT_BYTES = 1024  # longest text sent between processes
SIGHT_SECONDS = 10.0  # time for a network file system to show a new file
SAME_START = "start all with the same command, code and files"


class Followed(UserError):
    """Process 0 has ended the run and says why; the others have nothing to add."""

    def __init__(self, exit_code: int):
        self.exit_code = exit_code
        super().__init__("process 0 has ended the run")


def is_process_0() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def require_equal_devices() -> None:
    """Raise `UserError` if processes have unequal numbers of devices. Sends nothing."""
    counts = Counter(device.process_index for device in jax.devices())
    if others := [f"process {i} has {n}" for i, n in counts.items() if n != counts[0]]:
        raise UserError(
            f"process 0 has {counts[0]} devices, but {', '.join(others)}: every process needs the "
            "same number, so remove the faulty node, or set CUDA_VISIBLE_DEVICES"
        )


def broadcast_from_0(value: float) -> float:
    """Return process 0's number on every process."""
    if jax.process_count() == 1:
        return value
    # as bytes, since jax would round a float64
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(np.float64(value).tobytes(), "u1"))
    return float(np.frombuffer(np.asarray(told, "u1").tobytes(), np.float64)[0])


def on_process_0(action: Callable[[], T]) -> T | None:
    """Run `action` on process 0 alone; return its result there, and None elsewhere.

    The others wait for it; a `UserError` ends all processes with its exit code.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
    if is_process_0():
        try:
            result = action()
        except UserError as error:
            failure = error
    code = int(broadcast_from_0(0 if failure is None else failure.exit_code))
    if failure is not None:
        raise failure
    if code:
        raise Followed(code)
    return result


def alone_on_0(phases: Phases, phase: Phase, action: Callable[[], T]) -> T | None:
    """`on_process_0` for what may take long: it is watched there, and the others just wait."""

    def act() -> T:
        with phases.during(phase):
            return action()

    with phases.waiting_for_0():
        return on_process_0(act)


def first_complaint(text: str | None) -> str | None:
    """Return the text of the first process that has one, on every process; None without any."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(COMPLAINT_BYTES, np.uint8)
    raw = np.frombuffer((text or "").encode()[:COMPLAINT_BYTES], np.uint8)
    mine[: raw.size] = raw
    told = np.asarray(multihost_utils.process_allgather(mine), np.uint8)
    texts = [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in told]
    return next(filter(None, texts), None)


def require_same(what: str, value: str, remedy: str = SAME_START) -> None:
    """Raise `UserError` on every process, naming those whose `value` differs from process 0's."""
    if jax.process_count() == 1:
        return
    sums = _all_say(zlib.crc32(value.encode()))
    if others := [i for i, s in enumerate(sums) if s != sums[0]]:
        raise UserError(
            f"{what} is not the same on all {jax.process_count()} processes: {_in_words(others)} "
            f"and process 0 disagree; {remedy}"
        )


def _in_words(processes: Sequence[int]) -> str:
    """`process 1`, or `processes 1, 3`."""
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, processes))}"


def _all_say(number: int) -> list[int]:
    """Return the numbers of all processes, each below 2**32, on every process."""
    return np.ravel(multihost_utils.process_allgather(np.uint32(number))).tolist()


def require_shared(directory: Path) -> None:
    """Raise `UserError` on every process, naming those that do not see process 0's `directory`.

    Process 0 writes a token there and the others read it. The mere existence of the directory would
    prove nothing: each node's own disk may hold one of this name, left by an older run.
    """
    if jax.process_count() == 1:
        return
    token = f"{int(broadcast_from_0(secrets.randbits(52))):x}"
    path = directory / f".{token}.tmp"  # a new name: no file system has cached its absence
    on_process_0(lambda: path.write_text(token))
    blind = [i for i, sees in enumerate(_all_say(_shows(path, token))) if not sees]
    on_process_0(lambda: path.unlink(missing_ok=True))
    if blind:
        raise UserError(
            f"{_in_words(blind)} cannot see {directory}: the run directory must be on a file "
            "system shared by all nodes"
        )


def _shows(path: Path, text: str) -> bool:
    """Whether the file holds `text` within `SIGHT_SECONDS`."""
    deadline = time.monotonic() + SIGHT_SECONDS
    while True:
        with suppress(OSError):
            if path.read_text() == text:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)  # makes a network file system look again


def max_over_processes(number: int) -> Callable[[], int]:
    """Start a maximum over all processes; calling the result waits for it.

    The devices compute it after the work that they already have, so starting it costs no wait.
    """
    sharding, find = _maximum()
    mine = np.full(jax.local_device_count(), number, np.int32)
    with jax.transfer_guard_host_to_device("allow"):  # as asked for
        found = find(jax.make_array_from_process_local_data(sharding, mine))
    return lambda: int(jax.device_get(found))


@cache
def _maximum() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """One number on every device, and the program that finds the largest."""
    shape, names = (jax.device_count(),), ("device",)
    mesh = jax.make_mesh(shape, names, (AxisType.Auto,), devices=jax.devices())
    everywhere = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(
        lambda x: x.max(), out_shardings=everywhere
    )


def exit_process(error: BaseException, process: int | None = None) -> NoReturn:
    """Report `error` and end this process, one of several, at once.

    Its number is `process`, or else the one that jax knows once it has devices.

    Raising the exception would not end it: on its way out this process would wait for the others,
    for a save in progress or in jax's shutdown, while they wait for it in a step.
    """
    process = jax.process_index() if process is None else process
    name, code = f"process {process}: " if process else "", BUG
    error = as_user_error(error)
    speaks = speaks_last() and not isinstance(error, Followed)
    if isinstance(error, UserError):
        code = error.exit_code
        if speaks:
            print(f"{name}error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        code = 130
        print(f"{name}stopped", file=sys.stderr)
    else:
        text = "".join(traceback.format_exception(error))
        print("\n".join(name + line for line in text.splitlines()), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if process == 0 and isinstance(error, UserError):
        time.sleep(LAST_WORDS_SECONDS)
    os._exit(code)


def exit_if_distributed(
    _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
) -> bool:
    """As a context's exit: `exit_process` with the block's error if there are several processes."""
    if error is not None and jax.process_count() > 1:
        exit_process(error)
    return False

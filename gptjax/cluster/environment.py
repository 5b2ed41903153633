"""Checks the environment that jax reads, like the config: a mistake is one sentence.

If a variable is wrong, jax raises an exception of its own, and XLA ends the process.
"""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gptjax.base.errors import UserError, first_line
from gptjax.cluster.cards import package_notes
from gptjax.cluster.devices import POOL_SHARE
from gptjax.cluster.plugins import hide_gpu_compiler

FLAGS = "XLA_FLAGS"
DETERMINISTIC = "xla_gpu_deterministic_ops"
CHOICES = ("jax_platforms", "jax_platform_name", "jax_default_device")
# jax's words about a platform without a driver
UNKNOWN = ("not in the list of known backends", "no platforms that are instances of")
READS_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"
SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # new and old name
GUARDS = ("jax_transfer_guard", "jax_transfer_guard_host_to_device")
TRAINING = {
    "jax_disable_jit": False,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}
"""The settings of jax that change a training program, with the values that ours needs."""


class EnvironmentProblem(UserError):
    """An environment variable, or a setting of jax, that keeps every program from running."""

    exit_code = 2


class DeviceError(UserError):
    """Devices that exist but do not answer; another start may find them."""

    exit_code = 75  # sysexits.h: EX_TEMPFAIL


def import_jax(compiles_for_gpus: bool = False, deterministic: bool = False) -> None:
    """Import jax, which reads most of its variables now. Raises `EnvironmentProblem`.

    Its compiler for GPUs is hidden where there is none, unless it is asked for. If the run is to be
    `deterministic`, XLA is told so.
    """
    if deterministic:
        compute_deterministically()
    if not compiles_for_gpus:
        hide_gpu_compiler()
    if "jax" in sys.modules:
        return
    _check_xla_flags()
    _check_memory_share()
    try:
        import jax  # noqa: F401
    except (ImportError, ValueError, RuntimeError) as error:
        guilty = [n for n in os.environ if n.startswith("JAX_") and n.lower() in str(error).lower()]
        if not guilty:
            raise EnvironmentProblem(
                f"jax cannot be imported: {_sentence(error)}. Install gptjax again: pip install "
                "-e ."
            ) from error
        name = guilty[0]
        raise EnvironmentProblem(
            f"jax does not accept {name}={os.environ[name]}: {_sentence(error)}. Correct {name}, "
            "or unset it"
        ) from error


def claim_memory() -> None:
    """Give jax `POOL_SHARE` of a GPU's memory, unless the user has set a share by either name.

    jax's own share is three quarters. NCCL and the driver allocate from the rest. Training calls
    this before `import_jax`; other commands need less memory and keep jax's share.
    """
    if not any(os.environ.get(name) for name in SHARES):  # jax takes an empty one as not set
        os.environ[SHARES[0]] = str(POOL_SHARE)


def compute_deterministically() -> None:
    """Make XLA leave out GPU kernels whose sums come in another order each time.

    The flag stands for two things (openxla/xla, pull request 12520): operations without such
    kernels, and the same kernels at every compilation, since nothing is timed to choose them. jax
    0.10 and 0.12 read it before they find devices. A flag that the user has set stays.
    """
    given = os.environ.get(FLAGS, "")
    if DETERMINISTIC not in given:
        os.environ[FLAGS] = f"{given} --{DETERMINISTIC}=true".strip()


def _check_memory_share() -> None:
    """Refuse shares that jax refuses: it would print a stack trace and go on without a GPU."""
    given = {name: value for name in SHARES if (value := os.environ.get(name))}
    asked = " and ".join(f"{name}={value}" for name, value in given.items())
    if len(given) > 1:
        raise EnvironmentProblem(f"{asked} are two names of one setting: unset {SHARES[1]}")
    try:
        is_share = all(float(value) > 0 for value in given.values())
    except ValueError:
        is_share = False
    if not is_share:
        raise EnvironmentProblem(
            f"{asked} is no share of a GPU's memory: give {POOL_SHARE}, say, or unset it"
        )


def _check_xla_flags() -> None:
    """Let another process read the flags: XLA ends a process that reads an unknown flag."""
    if not (flags := os.environ.get(FLAGS)):
        return
    asked = subprocess.run([sys.executable, "-c", READS_FLAGS], capture_output=True, text=True)
    if asked.returncode and FLAGS in asked.stderr:
        lines = asked.stderr.splitlines()  # XLA's errors, then all its flags
        reason = next((line for line in lines if re.match(r"[EF]\d{4} ", line)), lines[0])
        reason = (reason.partition("] ")[2] or reason).rstrip(".")
        raise EnvironmentProblem(
            f"XLA does not accept {FLAGS}={flags}: {reason}. Correct {FLAGS} or unset it"
        )


def find_devices() -> Sequence[Any]:
    """The devices that jax finds; a warning of its search becomes a note on standard error.

    So does a library that does not suit a GPU.

    Raises `EnvironmentProblem` if it finds none.
    """
    import_jax()
    import jax

    try:
        with _warnings_as_notes("jax._src.xla_bridge"):
            devices = jax.devices()
            if isinstance(default := _setting("jax_default_device"), str):
                jax.devices(default)
    except (RuntimeError, AssertionError) as error:
        reason = _sentence(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        choices = {
            name.upper(): value
            for name in CHOICES
            if (value := _setting(name) or os.environ.get(name.upper()))
        }
        asked = ", ".join(f"{name}={value}" for name, value in choices.items())
        asked += ": " * bool(asked)
        if reason and not any(words in reason for words in UNKNOWN):
            raise DeviceError(f"{asked}jax finds no device: {reason}") from error
        raise EnvironmentProblem(
            f"{asked}jax finds no such device. Unset "
            f"{' and '.join(choices) or 'JAX_PLATFORMS'} to use other devices, or "
            f'install the driver (README, "On a GPU"){". " * bool(reason)}{reason}'
        ) from error
    for name in GUARDS:
        if str(_setting(name)).startswith("disallow"):
            raise EnvironmentProblem(
                f"{name.upper()} is {_setting(name)}, but every program starts with copies to its "
                f"devices. Unset {name.upper()}"
            )
    for note in package_notes(devices):
        print(f"note: {note}", file=sys.stderr)
    return devices


def check_training() -> None:
    """Raise one `EnvironmentProblem` with every setting of jax that training cannot use."""
    wrong = {name: _setting(name) for name in TRAINING if _setting(name) != TRAINING[name]}
    if wrong:
        said = ", ".join(f"{name.upper()} is {value}" for name, value in wrong.items())
        needed = ", ".join(str(TRAINING[name]) for name in wrong)
        names = ", ".join(name.upper() for name in wrong)
        raise EnvironmentProblem(f"{said}, but training needs {needed}. Unset {names}")


def _setting(name: str) -> Any:
    """A setting of jax, from its variable or from a call of `jax.config.update`."""
    import jax

    return getattr(jax.config, name, None)


@contextmanager
def _warnings_as_notes(name: str) -> Iterator[None]:
    """Show each warning of a library's logger in one line, without its stack trace."""
    logger = logging.getLogger(name)
    handler, propagates = _Notes(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {_sentence(record.getMessage())}", file=sys.stderr)


def _sentence(said: object) -> str:
    return first_line(said).rstrip(".")

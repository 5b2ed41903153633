"""A report to send with a question about a run: versions, devices, config, the end of the log.

It holds nothing private: no sampled text, and no names of users, hosts or homes.
"""

import os
import platform
import pwd
import re
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.cluster.environment import find_devices
from gptjax.config import Config, to_json
from gptjax.runs.directory import RunDir

PACKAGES = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DISABLE_JIT", "XLA_FLAGS")
VARIABLES += ("CUDA_VISIBLE_DEVICES",)
LAST = 40  # lines of the log
MESSAGE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")
SECRET = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 6  # letters; shorter values are switches and numbers
COMMON = {"", "root", "localhost"}  # names that identify nobody
ADDRESS = re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b")
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")


def run_report(run_path: Path | None, config: Config) -> Iterator[str]:
    """The lines of a report on a run, with its own config if there is one, else `config`.

    Without a `run_path`, or without a run there, the report has no log.
    """
    hide = Privacy.of_this_process()
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    for name in VARIABLES:
        if name in os.environ:
            yield hide(f"{name}={os.environ[name]}")
    yield hide(_devices())
    found = None if run_path is None else RunDir(run_path)
    if found is not None and found.config.exists():
        try:
            config = found.read_config()
            yield hide(f"config of the run in {found.path}")
        except UserError as error:
            yield hide(str(error))
    else:
        yield hide(f"no run in {run_path}; the config as given" if run_path else "no run was named")
    yield hide(to_json(config))
    if found is not None:
        yield from map(hide, last_messages(found.log))


def last_messages(log: Path) -> list[str]:
    """The last messages of a log.txt, without the text of samples; none if there is no log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return [line.rstrip("\n") for line in deque(filter(MESSAGE.match, lines), LAST)]
    except OSError:
        return []


class Privacy:
    """Replaces private text: homes, names of users and hosts, secrets."""

    def __init__(
        self,
        homes: Iterable[str],
        users: Iterable[str],
        hosts: Iterable[str],
        environment: Mapping[str, str],
    ):
        self._words = {home.rstrip("/"): "~" for home in sorted(homes, key=len, reverse=True)}
        self._words |= dict.fromkeys(users, "USER") | dict.fromkeys(hosts, "HOST")
        self._secrets = [
            value
            for name, value in environment.items()
            if SECRET.search(name) and len(value) >= SHORTEST_SECRET
        ]

    @classmethod
    def of_this_process(cls) -> "Privacy":
        """The private names of this machine; unknown ones need no hiding."""
        names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
        homes, host = {os.environ.get("HOME", "")}, socket.gethostname()
        with suppress(KeyError):  # a container may run as a user without a name
            entry = pwd.getpwuid(os.getuid())
            names, homes = names | {entry.pw_name}, homes | {entry.pw_dir}
        homes |= {os.path.realpath(home) for home in homes if home}
        return cls(homes, names, [host, host.partition(".")[0]], os.environ)

    def __call__(self, text: str) -> str:
        """The text without private names."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for name, word in self._words.items():
            if name not in COMMON:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", word, text)
        return LOGIN.sub("***@", ADDRESS.sub("ADDRESS", text))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    # looking at the devices takes no memory from a run on the same GPU
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        devices = find_devices()
    except UserError as error:
        return f"no devices: {error}"
    kinds = [f"{device.device_kind} ({device.platform})" for device in devices]
    return "devices " + ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))

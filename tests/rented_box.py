"""A machine to reach by ssh: a real sshd on a high port of 127.0.0.1, with a home of its own.

Its PATH holds links to the system's programs, but no Python, no rsync and nothing of NVIDIA's until
a test puts them there.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conftest import ROOT, environment_on

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
MISSING = re.compile(r"python|pip|rsync|nvidia|lspci|uv|conda")
SMI = """#!/bin/sh
# Stands for nvidia-smi: answers what launch/box.sh and launch/env.sh ask.
case $* in
--list-gpus) echo 'GPU 0: {name}';;
*driver_version*) echo '{driver}, {name}';;
*compute_cap*) echo '{capability}';;
esac
"""


def program(path: Path, text: str) -> Path:
    """A script that can be run."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Box:
    """One machine: its home, its programs, its sshd."""

    def __init__(self, place: Path, limit: int | None = None):
        self.home, self.bin, self.place = place / "home", place / "bin", place
        self.limit = limit  # bytes in a file; what a full disk is here
        self.tree = self.home / "gptjax"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        self.empty()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.where = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        for name in ("host_key", "key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name)
        (place / "authorized").write_text((place / "key.pub").read_text())
        kind, key, *_ = (place / "host_key.pub").read_text().split()
        (place / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        (place / "ssh_config").write_text(
            f"IdentityFile {place}/key\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {place}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\n"
        )
        self._sshd: subprocess.Popen | None = None

    def empty(self) -> None:
        """Make it as bare as a new one, or make a new one."""
        for path in self.bin.iterdir():
            if not path.is_symlink() or MISSING.match(path.name):
                path.unlink()
        for directory in ("/usr/bin", "/bin"):
            for name in os.listdir(directory):
                if not MISSING.match(name) and not (self.bin / name).exists():
                    (self.bin / name).symlink_to(Path(directory, name))
        shutil.rmtree(self.home)
        self.home.mkdir()

    def gpu(self, name: str = "NVIDIA H100 80GB HBM3", driver: str = "580.65.06", capability="9.0"):
        """Put a GPU into it."""
        program(
            self.bin / "nvidia-smi", SMI.format(name=name, driver=driver, capability=capability)
        )

    def switch_on(self) -> None:
        """Start its sshd, and wait until it listens."""
        words = environment_on(1) | {"HOME": str(self.home), "PATH": str(self.bin)}
        passed = ("HOME", "PATH", "XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR",
                  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "HF_ENDPOINT")  # fmt: skip
        environment = " ".join(f'"{name}={words[name]}"' for name in passed if name in words)
        (self.place / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.place}/host_key\n"
            f"AuthorizedKeysFile {self.place}/authorized\nPidFile none\nStrictModes no\n"
            "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nSetEnv {environment}\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges
        # a file that is too large is then an error, as on a full disk, and ends nobody
        limit = f"trap '' XFSZ; ulimit -f {self.limit // 1024}; " if self.limit else ""
        command = f"{limit}exec {SSHD} -D -e -f {self.place}/sshd_config"
        with (self.place / "sshd.log").open("a") as log:
            self._sshd = subprocess.Popen(["bash", "-c", command], stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._sshd.poll() is None, (self.place / "sshd.log").read_text()
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def cut(self) -> None:
        """End every connection; what runs on the machine goes on."""
        assert self._sshd is not None
        for child in children(self._sshd.pid):
            for session in [child, *children(child)]:
                if b"sshd" in Path(f"/proc/{session}/cmdline").read_bytes():
                    os.kill(session, signal.SIGKILL)

    def switch_off(self) -> None:
        """End the connections, the sshd and what a failed test has left."""
        if (left := self.tree / ".launch" / "pid").exists():
            for process in of_session(int(left.read_text())):
                os.kill(process, signal.SIGKILL)
        if self._sshd is not None:
            self.cut()
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def of_session(first: int) -> list[int]:
    """All processes of a session, by the process that began it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            number, _, rest = path.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[3]) == first:
                found.append(int(number))
    return found


@contextmanager
def rented(place: Path, limit: int | None = None) -> Iterator[Box]:
    """A machine that is switched on."""
    box = Box(place, limit)
    box.switch_on()
    try:
        yield box
    finally:
        box.switch_off()


def checkout(place: Path) -> Path:
    """A copy of this checkout, to start from: git knows it, and it has no runs."""
    place.mkdir()
    for name in ("gptjax", "configs", "launch"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, place / name)
    _run("git", "init", "-q", place)
    _run("git", "-C", place, "add", ".")
    return place


def _run(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, stdout=subprocess.DEVNULL)

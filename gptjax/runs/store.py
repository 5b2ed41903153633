"""Checkpoints in an object store: s3://BUCKET/PATH, gs://BUCKET/PATH, or a mounted directory.

An object store has no rename, so a step is committed by its `INTEGRITY.json`, which is written last
and deleted first. It names size and checksum of every other file. Beside the steps lie the small
files of the run, so that another machine can go on with nothing but the address.

Orbax cannot write arrays to s3:// itself, and writes gs:// unsigned. So it writes to the run's
directory, as without a store, and signed steps are copied.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from gptjax.base.errors import UserError, first_line
from gptjax.runs.integrity import INTEGRITY, verify

STEPS, FILES = "checkpoints", "run"
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
FORMS = "give s3://BUCKET/PATH, gs://BUCKET/PATH or a directory"
SECONDS = {"connect_timeout": 20, "read_timeout": 60}  # for one answer of an S3 store
ARRIVING = ".arriving"  # beside the checkpoints: steps that are not complete here yet


class StoreError(UserError):
    """An object store that does not answer, or refuses."""

    exit_code = 74  # sysexits.h: EX_IOERR


class Store:
    """The signed steps and small files of one run, at an address that fsspec understands."""

    def __init__(self, url: str):
        """Raises `UserError` if the address is none, or if a package is missing."""
        self.url = url.rstrip("/") or url
        kind = url.partition("://")[0] if "://" in url else "file"
        if kind not in ("file", *PACKAGES) or not url.partition("://")[2 if "://" in url else 0]:
            raise UserError(f"train.checkpoint_dir {url!r} is no address of a store: {FORMS}")
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if kind == "s3":
            options["config_kwargs"] = SECONDS
        self._has_directories = kind == "file"
        import fsspec  # Orbax brings it

        try:
            self._files, self._root = fsspec.url_to_fs(self.url, **options)
        except ImportError as error:
            raise UserError(
                f"train.checkpoint_dir {url} needs the package {PACKAGES[kind]}: pip install "
                "'gptjax[cloud]'"
            ) from error

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        with self._reporting("list"):
            found = self._files.glob(f"{self._root}/{STEPS}/*/{INTEGRITY}")
        names = [PurePosixPath(path).parent.name for path in found]
        return sorted(int(name) for name in names if name.isdecimal())

    def put_step(self, step_dir: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Copy a signed step and commit it; `progress` is called after each file."""
        here = f"{self._root}/{STEPS}/{step_dir.name}"
        with self._reporting(f"write step {step_dir.name}"):
            for name in json.loads((step_dir / INTEGRITY).read_text()):
                self._put(step_dir / name, f"{here}/{name}")
                progress()
            self._put(step_dir / INTEGRITY, f"{here}/{INTEGRITY}")

    def get_step(
        self, step: int, target: Path, progress: Callable[[], None] = lambda: None
    ) -> str | None:
        """Copy a step to `target`, in a directory of steps, if it verifies; else say the fault."""
        here, place = f"{self._root}/{STEPS}/{step}", target.parent.parent / ARRIVING
        arriving = place / target.name
        shutil.rmtree(arriving, ignore_errors=True)
        try:
            with self._reporting(f"read step {step}"):
                arriving.mkdir(parents=True)
                self._get(f"{here}/{INTEGRITY}", arriving / INTEGRITY)
                try:
                    names = list(json.loads((arriving / INTEGRITY).read_text()))
                except (ValueError, TypeError):
                    return f"{INTEGRITY} is not readable"
                for name in names:
                    path = arriving / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not self._files.exists(f"{here}/{name}"):
                        return f"{name} is missing"
                    self._get(f"{here}/{name}", path)
                    progress()
            if (problem := verify(arriving)) is None:
                target.parent.mkdir(exist_ok=True)
                arriving.rename(target)
            return problem
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def delete_step(self, step: int) -> None:
        """Delete a step, its commit first."""
        here = f"{self._root}/{STEPS}/{step}"
        with self._reporting(f"delete step {step}"):
            self._files.rm_file(f"{here}/{INTEGRITY}")
            self._files.rm(here, recursive=True)

    def put_file(self, path: Path) -> None:
        """Copy a small file of the run."""
        with self._reporting(f"write {path.name}"):
            self._put(path, f"{self._root}/{FILES}/{path.name}")

    def get_files(self, target: Path) -> list[Path]:
        """Copy the small files of the run to a directory."""
        with self._reporting("read the files of the run"):
            found = self._files.glob(f"{self._root}/{FILES}/*")
            copied = [target / PurePosixPath(path).name for path in found]
            for source, path in zip(found, copied, strict=True):
                self._get(source, path)
        return copied

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it is not there."""
        path = f"{self._root}/{name}"
        with self._reporting(f"read {name}"):
            return self._files.cat_file(path) if self._files.exists(path) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        with self._reporting(f"write {name}"):
            path = f"{self._root}/{name}"
            self._make_room_for(path)
            self._files.pipe_file(path, content)

    def _put(self, source: Path, path: str) -> None:
        self._make_room_for(path)
        self._files.put_file(str(source), path)
        if (size := self._files.size(path)) != source.stat().st_size:
            raise OSError(f"{path} has {size} bytes there, but {source.stat().st_size} here")

    def _make_room_for(self, path: str) -> None:
        if self._has_directories:  # an object store would make a bucket instead
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _get(self, path: str, target: Path) -> None:
        self._files.get_file(path, str(target))

    @contextmanager
    def _reporting(self, action: str) -> Iterator[None]:
        """Turn whatever the client raises into one message."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = first_line(error)[:300]
            check = "the address, the credentials in the environment and the network"
            if self._has_directories:
                check = "that this directory may be written, and its disk"
            raise StoreError(
                f"cannot {action} at {self.url}: {type(error).__name__}: {reason}. Check {check}"
            ) from error

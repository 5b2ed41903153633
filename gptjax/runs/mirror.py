"""Copies the committed checkpoints of a run to its store, in the background, and brings them back.

A thread looks at the run's directory, where a step appears by a rename. The newest step goes first;
steps that the run has deleted are deleted there too, except milestones and the best. A store that
does not answer stops nothing: the run trains on, the thread tries again, and only the end waits.

A machine with an empty run directory takes over the run of a store: its files, the newest step that
verifies, and the best one. With the first step that it copies there, the store belongs to it, and
another process that still copies there stops.
"""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically
from gptjax.cluster.agreement import alone_on_0, is_process_0
from gptjax.cluster.phases import Phase, Phases
from gptjax.config import TrainConfig
from gptjax.runs.directory import LOCK, STORE, RunDir
from gptjax.runs.incidents import kept_step, read_incidents
from gptjax.runs.integrity import INTEGRITY
from gptjax.runs.ranking import Ranking
from gptjax.runs.store import Store, StoreError

OWNER = "owner"  # in the store: the run that writes there
INCIDENTS_KNOWN = "incidents_known"  # in the store: incidents after which it was cleaned
BROUGHT = "brought from "  # before the owner: this run came from there, and has not trained yet
LEAVING = ".leaving-for-store"  # links to a step on its way, which the run may delete meanwhile
STAYS = {LOCK, STORE, "log.txt"}
PICTURES = {".png", ".html", ".tmp"}
LOOK_SECONDS = 1.0
LONGEST_PAUSE = 60.0  # seconds between two tries
PATIENCE = 600.0  # seconds that the end of a run waits for a store
Say = Callable[[str], None]


class Mirror:
    """The copy of one run in its store. `open` comes first, `copying` while the run goes on."""

    def __init__(self, url: str, run_dir: RunDir, keep_every_steps: int = 0):
        """Raises `UserError` for an address that is none, or without the package for it."""
        self._store, self._run, self._keep_every = Store(url), run_dir, keep_every_steps
        if "://" not in url and _overlap(Path(url), run_dir.path):
            raise UserError(
                f"train.checkpoint_dir {url} and the run's directory {run_dir.path} lie in each "
                "other: give a directory of another disk"
            )
        self._there: set[int] | None = None  # steps in the store, once it has answered
        self._incidents: int | None = None  # that the store knows of, once it was asked
        self._claims = False  # whether this run is to become the owner of the store,
        self._before = ""  # who was it when this run looked, and the steps that it brought then
        self._brought: set[int] = set()
        self._closed = threading.Event()
        self._beat: Callable[[], None] = lambda: None

    def open(self, fresh: bool) -> list[str]:
        """Bring the run in the store, if there is one; returns notes for the user.

        Raises `UserError` if it holds another run, and `StoreError` if it does not answer.
        """
        theirs, mine = self._store.read(OWNER), self._owner()
        with self._run.locked():
            if theirs is None:
                self._claims = True
                return []
            self._before = theirs.decode()
            self._refuse_stranger(theirs.decode(), mine, fresh)
            self._claims = mine in (None, BROUGHT + theirs.decode())
            if mine is None:  # nor in the store yet: this start may still be refused
                self._belong(BROUGHT + theirs.decode())
            self._forget_abandoned()
            notes = self._take_over()
            self._brought = set(self._run.steps())
            return notes

    def _refuse_stranger(self, theirs: str, mine: str | None, fresh: bool) -> None:
        """Raise `UserError` if the store holds what this start may neither go on with nor mix."""
        there, here = f"train.checkpoint_dir {self._store.url}", self._run.path
        if fresh:
            raise UserError(f"{there} holds checkpoints: give a run that starts over another one")
        if mine in (theirs, BROUGHT + theirs) or not self._run.has_checkpoint:
            return
        if mine is not None:
            raise UserError(
                f"another machine has taken over the run in {there}. To go on with what is there, "
                f"move {here} away, or give another --run-dir: the same command brings the newest "
                "steps. To go on with what is here, give another --train.checkpoint-dir"
            )
        raise UserError(
            f"{there} holds checkpoints of another run than {here}: give another address, or, to "
            "go on with what is there, another --run-dir"
        )

    @contextmanager
    def copying(self, say: Say, phases: Phases) -> Iterator[Callable[[], None]]:
        """Copy while this block runs; call what it gives, to wait until all is copied.

        All processes call both; process 0 copies. Raises `StoreError` if the end waits in vain.
        """
        thread = threading.Thread(target=self._copy_on, args=(say,), daemon=True, name="mirror")
        if is_process_0():
            thread.start()

        def finish() -> None:
            self._closed.set()
            alone_on_0(phases, Phase.SAVING, lambda: self._finish(thread, phases.heartbeat, say))

        try:
            yield finish
        finally:
            self._closed.set()

    def _owner(self) -> str | None:
        """The owner of the store as this run knows it; None if it knows none."""
        try:
            found = json.loads((self._run.path / STORE).read_bytes())
            return found[OWNER] if found["url"] == self._store.url else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _claim(self) -> None:
        """Become the owner, which a start that never copies a step does not."""
        name = secrets.token_hex(8)
        self._store.write(OWNER, name.encode())
        self._belong(name)
        self._claims = False

    def _belong(self, name: str) -> None:
        content = json.dumps({"url": self._store.url, OWNER: name})
        write_atomically(self._run.path / STORE, content.encode())

    def _take_over(self) -> list[str]:
        """Bring what is missing here: the run's files, its newest good step, and the best."""
        notes, here, there = [], self._run.steps(), self._store.steps()
        wanted = [step for step in reversed(there) if step > max(here, default=-1)]
        if wanted and not self._run.has_checkpoint:
            self._store.get_files(self._run.path)
        for step in wanted:
            problem = self._store.get_step(step, self._run.checkpoints / str(step))
            if problem is None:
                notes.append(f"step {step} was brought from {self._store.url}")
                break
            notes.append(f"checkpoint of step {step} in {self._store.url} is damaged: {problem}")
        best = Ranking.of(self._run.checkpoints, there).best()
        if self._claims and best is not None and best not in self._run.steps():
            self._store.get_step(best, self._run.checkpoints / str(best))
        return notes

    def _finish(self, thread: threading.Thread, beat: Callable[[], None], say: Say) -> None:
        """Copy what is missing, and try again for a while."""
        self._beat, has_failed = beat, False
        while thread.is_alive():  # it ends after the file under way
            thread.join(LOOK_SECONDS)
            beat()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._copy_all(lambda: False)
            except StoreError as error:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{error}. All checkpoints are in {self._run.checkpoints}: rerun the same "
                        "command to copy them"
                    ) from error
                if not has_failed:
                    say(f"{error}. The end waits for it, {PATIENCE:.0f} seconds at most")
                has_failed = True
            beat()
            time.sleep(LOOK_SECONDS)

    def _copy_on(self, say: Say) -> None:
        """Copy until the run ends; a failure is said once, until copying works again."""
        pause, has_failed = LOOK_SECONDS, False
        while not self._closed.wait(pause):
            try:
                self._copy_all(self._closed.is_set)
            except StoreError as error:
                pause = min(2 * pause, LONGEST_PAUSE)
                if not has_failed:
                    say(f"{error}. The run goes on, and tries again")
                has_failed = True
            except UserError as error:
                say(f"{error}")
                return
            else:
                if has_failed:
                    say(f"checkpoints are copied to {self._store.url} again")
                pause, has_failed = LOOK_SECONDS, False

    def _forget_abandoned(self) -> None:
        """Delete the steps from which the run went back, before others take their numbers.

        The store counts the incidents that it knows, so each is dealt with once.
        """
        incidents = [i for i in read_incidents(self._run.path) if kept_step(i) is not None]
        if incidents and self._incidents is None:
            self._incidents = int(self._store.read(INCIDENTS_KNOWN) or b"0")
        if not (new := incidents[self._incidents or 0 :]):
            return
        self._require_ownership()
        last = min(step for i in new if (step := kept_step(i)) is not None)
        for step in [step for step in self._store.steps() if step > last]:
            self._store.delete_step(step)
            self._there = self._there and self._there - {step}
        self._store.write(INCIDENTS_KNOWN, str(len(incidents)).encode())
        self._incidents = len(incidents)

    def _copy_all(self, ends: Callable[[], bool]) -> None:
        """Copy the steps that are not there, newest first, and delete those that are not wanted."""
        if self._claims and set(self._committed()) - self._brought:
            self._require_ownership()
        if self._there is None:
            self._there = set(self._store.steps())
        while not ends():
            self._forget_abandoned()
            if not (missing := set(self._committed()) - self._there):
                return
            step = max(missing)
            leaving = self._run.path / LEAVING / str(step)
            shutil.rmtree(leaving, ignore_errors=True)
            try:
                place = self._run.checkpoints / str(step)
                shutil.copytree(place, leaving, copy_function=os.link)
                self._require_ownership()
                for file in self._files():
                    self._store.put_file(file)
                self._store.put_step(leaving, self._beat)
                self._there.add(step)
            except (OSError, shutil.Error):  # the run has just deleted it
                continue
            finally:
                shutil.rmtree(leaving.parent, ignore_errors=True)
            self._prune(step)

    def _prune(self, newest: int) -> None:
        here = self._committed()
        kept = {*here, newest, Ranking.of(self._run.checkpoints, self._there or ()).best()}
        for step in sorted(self._there or ()):
            is_milestone = self._keep_every and step % self._keep_every == 0
            if step < newest and step not in kept and not is_milestone:
                self._store.delete_step(step)
                self._there = (self._there or set()) - {step}

    def _committed(self) -> list[int]:
        place = self._run.checkpoints
        return [step for step in self._run.steps() if (place / str(step) / INTEGRITY).exists()]

    def _files(self) -> list[Path]:
        """The small files of the run; log, lock and pictures stay here."""
        return [
            path
            for path in sorted(self._run.path.iterdir())
            if path.is_file()
            and not path.name.startswith(".")
            and path.name not in STAYS
            and path.suffix not in PICTURES
        ]

    def _require_ownership(self) -> None:
        theirs = (self._store.read(OWNER) or b"").decode()
        if self._claims and theirs == self._before:
            self._claim()
        elif theirs != self._owner():
            raise UserError(
                f"another process has taken over the run in {self._store.url}: nothing is copied "
                "there any more"
            )


def mirror_of(train: TrainConfig, run_dir: RunDir) -> Mirror | None:
    """The copy that a config asks for; None if checkpoints stay in the run's directory."""
    if train.checkpoint_dir is None:
        return None
    return Mirror(train.checkpoint_dir, run_dir, train.keep_every_steps)


def _overlap(one: Path, other: Path) -> bool:
    """Whether one of two directories is the other, or lies in it."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)

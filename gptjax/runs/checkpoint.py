"""Checkpoints that survive: Orbax writes them, and this file adds signatures and error reports.

Orbax commits a step atomically and in the background. But it does not notice a flipped bit, takes a
half-deleted directory for a step, and reports a failed background save only at the next call. So a
step is signed before it is committed (`integrity`), restoring walks back from the newest step to
the first that verifies, and `poll` reports late errors.

A step holds named trees of arrays, a cursor (step, data fingerprint, validation loss) and the
config. A run's trees are params, opt_state and, if there is one, averaged: the running average of
the parameters. Generating or converting reads the average, else params, and nothing else. A run of
adapters has these alone, as adapters, in place of params.

All processes of a run save, sign, verify and restore together, each its own part. Process 0 moves
damaged steps and decides which step is restored. If a save fails on one of several processes, the
run ends: the others would wait for it, and nothing could interrupt them.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree
from gptjax.cluster.agreement import broadcast_from_0, first_complaint, on_process_0
from gptjax.runs import integrity
from gptjax.runs.integrity import SignedStep, sign_own, verify
from gptjax.runs.naming import ADAPTERS, AVERAGED, PARAMS, no_checkpoint
from gptjax.runs.quiet import silence_orbax
from gptjax.runs.ranking import CURSOR_FILE, LatestAndBest, Ranking
from gptjax.runs.reasons import reason_of, reason_of_save

NO_STEP = -1  # process 0 sends this to the others if there is none
WRITTEN = "async_write_complete"  # Orbax: each process has written its part of a step
Say = Callable[[str], None]


class SaveError(UserError):
    """A checkpoint could not be written; the run's earlier ones are untouched."""

    exit_code = 74  # sysexits.h: EX_IOERR; a disk may have room, or be there, at another attempt


class RestoreError(UserError):
    """Not all processes could restore a checkpoint; it is not moved."""

    exit_code = 74


class Restored(NamedTuple):
    """A step as it came back: its trees by their names, and its cursor."""

    step: int
    items: dict[str, Tree]
    cursor: dict


class Checkpointer:
    """The checkpoints of one run directory. Call `poll` at every step and `close` at the end."""

    def __init__(
        self, directory: Path, keep_latest: int = 2, read_only: bool = False, alone: bool = False
    ):
        silence_orbax()
        self.directory = directory.resolve()
        self.longest_save = 0.0  # seconds from the call of `save` to the commit
        self._read_only = read_only
        self._readers = {0} if alone else None  # processes that Orbax waits for; None: all
        self._policy = LatestAndBest(keep_latest, lambda: self.ranking, self.directory.parent)
        self._saving: int | None = None
        self._begun = (NO_STEP, 0.0)  # the last step that was to be saved, and when that began
        self._meet = ocp.multihost.get_barrier_sync_fn()
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            preservation_policy=self._policy,
            temporary_path_class=SignedStep,
            async_options=ocp.AsyncOptions(barrier_sync_fn=self._sign_and_meet),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=self._readers
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self.ranking = Ranking.of(self.directory, self.steps())

    def _sign_and_meet(self, *, key: str, timeout_ms: int) -> None:
        """Wait for the other processes where Orbax does; sign this one's part once it is written.

        Only several processes wait there, in a thread of Orbax's. If it should rename the place,
        process 0 signs everything.
        """
        if WRITTEN in key:
            sign_own(self.directory, self._begun[0], jax.process_index())
        self._meet(key=key, timeout_ms=timeout_ms)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def committed(self) -> int:
        """The newest step that is whole on disk; 0 without one."""
        return max((step for step in self.steps() if step != self._saving), default=0)

    def best_step(self) -> int | None:
        """The kept step that is best by its validation; None if none was measured."""
        return self.ranking.best(self.steps())

    def choose(self, which: str) -> int:
        """The step that `best`, `latest` or a number means; raises `UserError` without one."""
        steps = self.steps()
        if steps and which == "latest":
            return steps[-1]
        if steps and which == "best":
            best = self.best_step()
            return steps[-1] if best is None else best
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise no_checkpoint(which, steps, self.directory)

    def save(
        self, step: int, items: dict[str, Tree], config: dict, cursor: dict, keeps_all: bool = False
    ) -> None:
        """Start writing a step in the background; returns when `items` may be overwritten.

        Does nothing for a step that is there already. With `keeps_all` no other step is deleted
        for it. Raises `SaveError`.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self.ranking.drop(step)  # of an earlier step of this number
        self._policy.keeps_all = keeps_all
        self._begun = step, time.monotonic()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                    cursor=ocp.args.JsonSave({"step": step, **cursor}),
                    config=ocp.args.JsonSave(config),
                ),
                force=True,
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = step
        self.ranking.add(step, cursor)

    def note(self, step: int, figures: dict) -> None:
        """Keep the validation of a step, if it was saved; all processes call this."""
        if step not in self._manager.all_steps():
            return
        self.ranking.keep(self.steps())
        self.ranking.note(step, figures)
        on_process_0(lambda: self.ranking.write(self.directory.parent))

    def poll(self) -> None:
        """Notice that a save has ended; raises `SaveError` if it failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Block until everything that was saved is signed and on disk; raises `SaveError`."""
        step, self._saving = self._saving, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from error
        self.longest_save = max(self.longest_save, time.monotonic() - self._begun[1])

    def close(self) -> None:
        """Wait, and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _failed(self, step: int, error: Exception) -> SaveError:
        """Reopen the manager, whose list of steps is wrong now, and tell the user."""
        self.ranking.drop(step)
        if not _several():
            self._manager.close()
            self._open()
        return SaveError(
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{reason_of_save(error)}"
        )

    def restore(self, abstract: dict[str, Tree], say: Say) -> Restored | None:
        """The newest step that verifies, placed as `abstract` says; None if there is none.

        Damaged steps are moved to a directory `damaged` beside the others' and named through `say`.
        Raises `UserError` if there are steps but none is what was written, or if one that is cannot
        be read: then memory or permissions are short, and the step stays where it is.
        """
        if (step := self._newest_good(say)) is None:
            on_process_0(self._refuse_if_lost)
            return None
        for doubtful in self.ranking.unknown():
            say(
                f"checkpoint of step {doubtful} has a damaged {CURSOR_FILE}: its validation loss "
                "is unknown, so it is kept but is not the best"
            )
        return self._restore(step, abstract)

    def go_back(self, before: int, say: Say) -> int | None:
        """Set aside the steps from `before` on, if any is older; the newest that then verifies."""
        if not broadcast_from_0(any(step < before for step in self.steps())):
            return None
        return self._newest_good(say, before)

    def _newest_good(self, say: Say, before: float = math.inf) -> int | None:
        """The newest good step below `before`; damaged and later ones are set aside."""
        while (step := int(broadcast_from_0(max(self.steps(), default=NO_STEP)))) != NO_STEP:
            problem = "no step after it had finite gradients"
            if step < before and (problem := first_complaint(self._problem(step))) is None:
                return step
            place = self.directory / str(step)
            on_process_0(
                lambda place=place, problem=problem: say(integrity.set_aside(place, problem))
            )
            self._manager.reload()
            self.ranking.keep(self.steps())
        return None

    def _problem(self, step: int) -> str | None:
        """The damage that this process finds in its share of a step."""
        share = jax.process_index(), jax.process_count()
        return verify(self.directory / str(step), *share, needed=(self._own(step), CURSOR_FILE))

    def _own(self, step: int) -> str:
        """The item of a step that is trained: params, or adapters where it has no params."""
        here = self.directory / str(step)
        is_adapted = (here / ADAPTERS).exists() and not (here / PARAMS).exists()
        return ADAPTERS if is_adapted else PARAMS

    def _refuse_if_lost(self) -> None:
        """Raise `UserError` if there were steps and all of them are set aside."""
        if (self.directory.parent / integrity.DAMAGED).is_dir():
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read; they are in "
                f"{self.directory.parent / integrity.DAMAGED} now. Copy one back from a backup, "
                "or start over with --fresh"
            )

    def _restore(self, step: int, abstract: dict[str, Tree]) -> Restored:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        try:
            items = self._manager.restore(
                step, args=ocp.args.Composite(**args, cursor=ocp.args.JsonRestore())
            )
        except Exception as error:
            place = self.directory / str(step)
            if not _several():
                raise UserError(
                    f"checkpoint {place} is undamaged but cannot be restored: {reason_of(error)}"
                ) from error
            raise RestoreError(
                f"checkpoint {place} cannot be restored: {reason_of(error)}; if every start ends "
                "like this, move it away, and training resumes from the one before"
            ) from error
        return Restored(step, {name: items[name] for name in abstract}, items["cursor"])

    def has_average(self, step: int) -> bool:
        """Whether a step holds a running average of the parameters."""
        return (self.directory / str(step) / AVERAGED).exists()

    def restore_params(self, step: int, abstract_params: Tree, averaged: bool = True) -> Tree:
        """Parameters or adapters, their average if wanted and there; `UserError` if damaged."""
        item = AVERAGED if averaged and self.has_average(step) else self._own(step)
        problem = verify(self.directory / str(step), needed=(item,))
        if problem is None:
            try:
                args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract_params)})
                return self._manager.restore(step, args=args)[item]
            except Exception as error:
                problem = reason_of(error)
        raise UserError(f"checkpoint {self.directory / str(step)} is damaged: {problem}")


def _several() -> bool:
    """Whether other processes restore and save with this one."""
    return jax.process_count() > 1

"""Checkpoints that survive: Orbax writes them, and this file adds signatures and error reports.

Orbax commits a step atomically and in the background. But it does not notice a flipped bit, takes a
half-deleted directory for a step, and reports a failed background save only at the next call. So a
step is signed before it is committed (`integrity`), a restore takes the newest step that is what
was in memory (`digests`), and `poll` reports late errors.

A step holds named trees of arrays, a cursor (step, data fingerprint, validation loss) and the
config. A run's trees are params (or adapters, if it trains these alone), opt_state and, if there is
one, averaged: their running average. Generating or converting reads the average, else params.

All processes of a run save, sign, verify and restore together, each its own part. Process 0 moves
damaged steps and decides which step is restored. If a save fails on one of several processes, the
run ends: the others would wait for it, and nothing could interrupt them.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gptjax.base.errors import UserError
from gptjax.base.tree import Tree
from gptjax.cluster.agreement import broadcast_from_0, first_complaint, on_process_0
from gptjax.runs import integrity
from gptjax.runs.digests import DIGESTS, difference, tree_digests
from gptjax.runs.earlier import UNVERIFIED, is_of_earlier_version
from gptjax.runs.integrity import SignedStep, sign, sign_own, verify
from gptjax.runs.naming import AVERAGED, no_checkpoint
from gptjax.runs.preserving import DISCARDED, Discarded, preservation
from gptjax.runs.quiet import silence_orbax
from gptjax.runs.ranking import CURSOR_FILE, Ranking
from gptjax.runs.reading import Restored, own_item, read_as_saved, restored_or_fault
from gptjax.runs.reasons import reason_of_save
from gptjax.runs.writing import at_low_priority, uncompressed

NO_STEP = -1  # process 0 sends this to the others if there is none
WRITTEN = "async_write_complete"  # Orbax: each process has written its part of a step
Say = Callable[[str], None]


class SaveError(UserError):
    """A checkpoint could not be written; the run's earlier ones are untouched."""

    exit_code = 74  # sysexits.h: EX_IOERR; a disk may have room, or be there, at another attempt


class Checkpointer:
    """The checkpoints of one run directory. Call `poll` at every step and `close` at the end."""

    def __init__(
        self, directory: Path, keep_latest: int = 2, keep_every_steps: int = 0,
        read_only: bool = False, alone: bool = False,
    ):  # fmt: skip
        silence_orbax()
        self.directory = directory.resolve()
        self._read_only = read_only
        self._readers = {0} if alone else None  # processes that Orbax waits for; None: all
        self._keeps_all, self._unverified = False, set[int]()
        now = (lambda: self.ranking), self.directory.parent, (lambda: self._keeps_all)
        self._policy = preservation(keep_latest, keep_every_steps, *now)
        self._saving: int | None = None
        self._begun = NO_STEP  # the last step that was to be saved
        self._discarded = Discarded(self.directory)
        self._meet = ocp.multihost.get_barrier_sync_fn()
        self._open()

    def _open(self) -> None:
        waiting = ocp.options.MultiprocessingOptions(active_processes=self._readers)
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            todelete_subdir=DISCARDED,  # by a rename, so that a kill leaves no half of a step
            preservation_policy=self._policy,
            temporary_path_class=SignedStep,
            async_options=ocp.AsyncOptions(barrier_sync_fn=self._sign_and_meet),
            multiprocessing_options=waiting,
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, handler_registry=uncompressed()
        )
        self.ranking = Ranking.of(self.directory, self.steps())
        if not self._read_only:
            self._discarded.empty()

    def _sign_and_meet(self, *, key: str, timeout_ms: int) -> None:
        """Wait for the other processes where Orbax does; sign this one's part once it is written.

        Only several processes wait there, in a thread of Orbax's. If it should rename the place,
        process 0 signs everything.
        """
        if WRITTEN in key:
            sign_own(self.directory, self._begun, jax.process_index())
        self._meet(key=key, timeout_ms=timeout_ms)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

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
        self._keeps_all = keeps_all
        self._begun = step
        marked = {"step": step, **cursor, DIGESTS: tree_digests(items)}
        args = ocp.args.Composite(
            **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()},
            cursor=ocp.args.JsonSave(marked),
            config=ocp.args.JsonSave(config),
        )
        try:
            at_low_priority(lambda: self._manager.save(step, args=args, force=True))
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

    @property
    def is_saving(self) -> bool:
        """Whether a save has begun whose end nobody has noticed yet."""
        return self._saving is not None

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
        self._discarded.empty()

    def close(self) -> None:
        """Wait for what is written and deleted, and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            if not self._read_only:
                self._discarded.close()

    def _failed(self, step: int, error: Exception) -> SaveError:
        """Reopen the manager, whose list of steps is wrong now, and tell the user."""
        self.ranking.drop(step)
        if jax.process_count() == 1:
            self._manager.close()
            self._open()
        return SaveError(
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{reason_of_save(error)}"
        )

    def restore(self, abstract: dict[str, Tree], say: Say) -> Restored | None:
        """The newest step that is what was saved, placed as `abstract` says; None if there is none.

        Damaged steps are moved to a directory `damaged` beside the others' and named through `say`.
        Raises `UserError` if there are steps but none is what was saved, and `RestoreError` if one
        cannot be read though its files are what was written.
        """
        self._sign_earlier(say)
        while (step := self._newest_good(say)) is not None:
            is_signed = step not in self._unverified
            found = restored_or_fault(self._manager, step, abstract, is_signed)
            if isinstance(found, Restored):
                for doubtful in self.ranking.unknown():
                    say(
                        f"checkpoint of step {doubtful} has a damaged {CURSOR_FILE}: its "
                        "validation loss is unknown, so it is kept but is not the best"
                    )
                return found
            self._set_aside(step, found, say)
        on_process_0(lambda: integrity.refuse_if_lost(self.directory))
        return None

    def _sign_earlier(self, say: Say) -> None:
        """Sign the steps of earlier versions that nobody has signed; they pass as they are."""
        self._unverified = {step for step in self.steps() if self._is_of_earlier_version(step)}

        def sign_all() -> None:
            for step in sorted(self._unverified):
                sign(self.directory / str(step))
                say(f"checkpoint of step {step} {UNVERIFIED}. It is signed now")

        on_process_0(sign_all)
        if self._unverified:
            self.ranking = Ranking.of(self.directory, self.steps())

    def _is_of_earlier_version(self, step: int) -> bool:
        place = self.directory / str(step)
        return is_of_earlier_version(place, (own_item(place), CURSOR_FILE))

    def go_back(
        self, before: int, say: Say, why: str = "no step after it had finite gradients"
    ) -> int | None:
        """Set aside the steps from `before` on, if any is older; the newest that then verifies.

        `why` they are set aside is said of each.
        """
        if not broadcast_from_0(any(step < before for step in self.steps())):
            return None
        return self._newest_good(say, before, why)

    def _newest_good(self, say: Say, before: float = math.inf, why: str = "") -> int | None:
        """The newest good step below `before`; damaged and later ones are set aside."""
        while (step := int(broadcast_from_0(max(self.steps(), default=NO_STEP)))) != NO_STEP:
            problem = why
            if step < before and (problem := first_complaint(self._problem(step))) is None:
                return step
            self._set_aside(step, problem, say)
        return None

    def _set_aside(self, step: int, problem: str, say: Say) -> None:
        place = self.directory / str(step)
        on_process_0(lambda: say(integrity.set_aside(place, problem)))
        self._manager.reload()
        self.ranking.keep(self.steps())

    def _problem(self, step: int) -> str | None:
        """The damage that this process finds in its share of a step."""
        if step in self._unverified:  # signed a moment ago, which not every process may see yet
            return None
        place, share = self.directory / str(step), (jax.process_index(), jax.process_count())
        return verify(place, *share, needed=(own_item(place), CURSOR_FILE))

    def has_average(self, step: int) -> bool:
        """Whether a step holds a running average of the parameters."""
        return (self.directory / str(step) / AVERAGED).exists()

    def restore_params(self, step: int, abstract_params: Tree, averaged: bool = True) -> Tree:
        """Parameters or adapters, their average if wanted and there, in the types asked for.

        Raises `UserError` if they are damaged, and `RestoreError` if they cannot be read.
        """
        place = self.directory / str(step)
        item = AVERAGED if averaged and self.has_average(step) else own_item(place)
        if self._is_of_earlier_version(step):
            print(f"note: checkpoint {place} {UNVERIFIED}", file=sys.stderr)
        elif (problem := verify(place, needed=(item, CURSOR_FILE))) is not None:
            raise UserError(f"checkpoint {place} is damaged: {problem}")
        restored = read_as_saved(self._manager, step, item, abstract_params)
        if (problem := difference(restored.items, restored.cursor)) is not None:
            raise UserError(f"checkpoint {place} is damaged: {problem}")
        return jax.tree.map(
            lambda x, like: x.astype(like.dtype), restored.items[item], abstract_params
        )

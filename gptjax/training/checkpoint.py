"""Checkpoints that survive: Orbax writes them, this adds what Orbax does not do by itself.

Orbax commits a step atomically and in the background, but does not notice a flipped bit, takes a
half-deleted directory for a step, and tells of a failed background save only when asked again. So
every committed step gets `INTEGRITY.json` (size and crc32 of each of its files), restoring walks
back from the newest step to the first that verifies, and `poll` brings late errors to light.

A step holds four items: params, opt_state, cursor (step, data fingerprint, validation loss) and
config. Parameters stand alone so that generating or converting reads nothing else; a fifth item,
averaged, holds their running average where there is one, and is what is read then.

All processes of a run save and restore together, each its own part. Process 0 verifies, signs and
moves what is damaged; which step is restored is what it says. A save that fails at one of several
ends the run: the others would wait for it where nobody can call them back.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gptjax.errors import UserError
from gptjax.training.agreement import by_first, first_says, is_first
from gptjax.training.integrity import INTEGRITY, sign, verify
from gptjax.training.optimizer import averaged_parameters
from gptjax.training.ranking import LatestAndBest, Ranking
from gptjax.training.state import TrainState
from gptjax.tree import Tree

CURSOR_FILE = "cursor/metadata"
DAMAGED = "damaged"
NO_STEP = -1  # what process 0 tells the others where there is none
AVERAGED = "averaged"
Say = Callable[[str], None]


class SaveError(UserError):
    """A checkpoint could not be written; the run's earlier ones are untouched."""

    exit_code = 74  # sysexits.h: EX_IOERR; a disk may have room, or be there, at another attempt


class RestoreError(UserError):
    """Not all processes could restore a checkpoint; it stays where it is."""

    exit_code = 74


class Checkpointer:
    """The checkpoints of one run directory. Call `poll` at every step and `close` at the end."""

    def __init__(self, directory: Path, keep_latest: int = 2, read_only: bool = False):
        for name in ("absl", "asyncio"):  # Orbax narrates its threads, and every error many times
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.directory = directory.resolve()
        self._read_only, self._keep_latest = read_only, keep_latest
        self._workers = ThreadPoolExecutor(1)
        self._saving: int | None = None
        self._signing: Future[None] | None = None
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            preservation_policy=LatestAndBest(self._keep_latest, lambda: self.ranking.best()),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self.ranking = Ranking()
        for step in self.steps():
            self.ranking.read(step, self.directory / str(step) / CURSOR_FILE)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The kept step with the lowest validation loss; None where none was measured."""
        return self.ranking.best(self.steps())

    def choose(self, which: str) -> int:
        """The step that `best`, `latest` or a number means; raises `UserError` without one."""
        steps = self.steps()
        if not steps:
            raise UserError(f"there is no checkpoint in {self.directory} yet")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self.best_step()
            return steps[-1] if best is None else best
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise UserError(
            f"there is no checkpoint {which!r} in {self.directory}: expected best, "
            f"latest or one of {', '.join(map(str, steps))}"
        )

    def save(self, state: TrainState, config: dict, cursor: dict) -> None:
        """Start writing a step in the background; returns when the state may be overwritten.

        Does nothing for a step that is there already. Raises `SaveError`.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()
        items = {"params": state.params, "opt_state": state.opt_state}
        if (averaged := averaged_parameters(state.opt_state)) is not None:
            items[AVERAGED] = averaged
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

    def poll(self) -> None:
        """Sign a save that has just ended; raises `SaveError` if it, or its signing, failed."""
        if self._signing is not None and self._signing.done():
            self._finish_signing()
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._finish_saving()

    def wait(self) -> None:
        """Block until everything that was saved is on disk and signed; raises `SaveError`."""
        if self._saving is not None:
            self._finish_saving()
        if self._signing is not None:
            self._finish_signing()

    def close(self) -> None:
        """Wait, and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._workers.shutdown()

    def _finish_saving(self) -> None:
        step, self._saving = self._saving, None
        assert step is not None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from error
        if is_first():
            self._signing = self._workers.submit(sign, self.directory / str(step))

    def _finish_signing(self) -> None:
        signing, self._signing = self._signing, None
        assert signing is not None
        try:
            signing.result()
        except OSError as error:
            raise SaveError(f"cannot sign a checkpoint in {self.directory}: {error}") from error

    def _failed(self, step: int, error: Exception) -> SaveError:
        """Reopen the manager, whose idea of what is on disk is wrong now, and tell the user."""
        self.ranking.drop(step)
        if jax.process_count() == 1:
            self._manager.close()
            self._open()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return SaveError(
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{reason[-1][:300]}; is the disk full?"
        )

    def restore(self, abstract: TrainState, say: Say) -> tuple[TrainState, dict] | None:
        """The newest step that verifies, placed as `abstract` says, and its cursor; None if empty.

        Damaged steps are moved to a directory `damaged` beside the others' and named through `say`.
        Raises `UserError` if there are steps but none can be read, or if one that verifies cannot
        be: then memory or permissions are short, and the step stays where it is.
        """
        if jax.process_count() > 1:
            return self._restore_together(abstract, say)
        found = self.steps()
        for step in reversed(found):
            problem = verify(self.directory / str(step))
            if problem is None:
                try:
                    return self._restore(step, abstract)
                except Exception as error:
                    problem = _reason(error)
                    if (self.directory / str(step) / INTEGRITY).exists():
                        raise UserError(
                            f"checkpoint {self.directory / str(step)} is undamaged but cannot be "
                            f"restored: {problem}"
                        ) from error
            self._set_aside(step, problem, say)
        self._refuse_if_lost(found)
        return None

    def _restore_together(self, abstract: TrainState, say: Say) -> tuple[TrainState, dict] | None:
        """`restore` for several processes: process 0 chooses the step.

        Where reading it fails it is not moved, for it may be another process that has failed.
        """

        def choose() -> int:
            found = self.steps()
            for step in reversed(found):
                problem = verify(self.directory / str(step))
                if problem is None:
                    return step
                self._set_aside(step, problem, say)
            self._refuse_if_lost(found)
            return NO_STEP

        step = int(first_says(by_first(choose) or 0))
        self._manager.reload()
        self.ranking.keep(self.steps())
        if step == NO_STEP:
            return None
        try:
            return self._restore(step, abstract)
        except Exception as error:
            raise RestoreError(
                f"checkpoint {self.directory / str(step)} cannot be restored: {_reason(error)}; if "
                "every start ends like this, move it away and the one before is taken"
            ) from error

    def _refuse_if_lost(self, found: list[int]) -> None:
        """Raise `UserError` if there were steps and all of them are set aside."""
        if found or (self.directory.parent / DAMAGED).exists():
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read; they are in "
                f"{self.directory.parent / DAMAGED} now. Copy one back from a backup, "
                "or start over with --fresh"
            )

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                opt_state=ocp.args.StandardRestore(abstract.opt_state),
                cursor=ocp.args.JsonRestore(),
            ),
        )
        count = jnp.asarray(step, jnp.int32, device=abstract.step.sharding)
        return TrainState(count, items["params"], items["opt_state"]), items["cursor"]

    def restore_params(self, step: int, abstract_params: Tree) -> Tree:
        """Parameters alone, their average if there is one; `UserError` if the step is damaged."""
        problem = verify(self.directory / str(step))
        item = AVERAGED if (self.directory / str(step) / AVERAGED).exists() else "params"
        if problem is None:
            try:
                args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract_params)})
                return self._manager.restore(step, args=args)[item]
            except Exception as error:
                problem = _reason(error)
        raise UserError(f"checkpoint {self.directory / str(step)} is damaged: {problem}")

    def _set_aside(self, step: int, problem: str, say: Say) -> None:
        target = self.directory.parent / DAMAGED / str(step)
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(target.name + "x")
        (self.directory / str(step)).rename(target)
        self.ranking.drop(step)
        self._manager.reload()
        say(
            f"checkpoint of step {step} is damaged ({problem}): moved to {target}, going back to "
            "the one before"
        )


def _reason(error: Exception) -> str:
    """What Orbax said, in one line."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__} on reading it: {first_line[:200]}"

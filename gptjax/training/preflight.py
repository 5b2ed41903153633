"""Preflight: everything that a run will do and need, checked before its first step, as a table.

A run that cannot sample after 1000 steps, or has no room for its second checkpoint, is found out
while nothing is lost yet. A start that resumes makes the cheap checks alone: links, disk, data.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from gptjax.base.errors import StorageError, UserError, first_line
from gptjax.base.terminal import bytes_in_words
from gptjax.base.tree import count_bytes
from gptjax.cluster.agreement import (
    Followed,
    broadcast_from_0,
    first_complaint,
    is_process_0,
    on_process_0,
    require_shared,
)
from gptjax.cluster.links import connect
from gptjax.cluster.phases import Phase, Phases
from gptjax.cluster.stop import StopRequest
from gptjax.data.verification import StoredShard, fault_of, sampled, stored_shards
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.space import check_space, planned_checkpoints
from gptjax.runs.trace import Startup
from gptjax.tokenizers.registry import fingerprint
from gptjax.training.measuring import Measuring
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.state import saved_items
from gptjax.training.trial import Check, Trial, remove_scratch, scratch_beside

LINE_SECONDS = 10.0  # between two lines about the hashes of the data
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED", "out of memory", "Out of memory"
SMALLER_STEP = (
    "a lower --train.micro-batch (or auto, the largest that fits), --model.remat full, a smaller "
    "--train.loss-chunk-tokens or --train.context, or the model divided by --mesh.fsdp"
)
LESS_MEMORY = {
    "compilation": SMALLER_STEP,
    "train step": SMALLER_STEP,
    "validation": "a lower --train.micro-batch, of which a validation batch has as many rows, or "
    "--train.eval-every-steps 0, which never validates",
    "evaluate-on": "no --train.evaluate-on, for which one device holds the whole model, and "
    "measure with python -m gptjax.evaluate afterwards",
    "sample": "--train.sample-every-steps 0, which never samples, or the model divided by "
    "--mesh.fsdp: a sample has a copy of the parameters of its own",
}
WITHOUT = "--train.preflight off starts without this trial"


class PreflightError(UserError):
    """A check has failed; its exit code is that of the failure."""

    def __init__(self, message: str, exit_code: int):
        self.exit_code = exit_code
        super().__init__(message)


class Preflight:
    """The checks of one start. All processes make them together."""

    def __init__(
        self,
        setup: Setup,
        run_dir: RunDir,
        checkpointer: Checkpointer,
        measuring: Measuring,
        display: Display,
        stop: StopRequest,
        phases: Phases,
        startup: Startup,
    ):
        self._setup, self._run_dir, self._checkpointer = setup, run_dir, checkpointer
        self._measuring, self._display, self._stop = measuring, display, stop
        self._phases, self._startup = phases, startup
        self._rows: list[tuple[str, str, str]] = []

    def passed(self) -> bool:
        """Make all checks and show their table; False if a stop request came meanwhile.

        Raises a `UserError` that says what to change. Nothing of it stays in memory or on the disk.
        """
        checkpoints = self._checkpointer.directory
        resumes = bool(broadcast_from_0(bool(self._checkpointer.steps())))
        with self._phases.during(Phase.PREFLIGHT):
            on_process_0(lambda: remove_scratch(scratch_beside(checkpoints)))
            done = self._make(self._cheap_checks())
            if done and not resumes and self._setup.config.train.preflight == "on":
                done = self._try_out()
        self._display.table("preflight", ("check", "result", "seconds"), self._rows)
        self._startup.end("preflight")
        if not done:
            self._display.say("stopped before the first step")
        return done

    def _try_out(self) -> bool:
        """The trial of the run's programs; False if a stop request came meanwhile."""
        setup, display = self._setup, self._display
        showing = Showing(setup.config, setup.tokenizer, self._run_dir, display, setup.task.unit)
        checkpoints = self._checkpointer.directory
        how = display, self._stop, self._phases, self._startup
        trial = Trial(setup, checkpoints, self._measuring, showing, *how)
        with trial.opened():
            return self._make(trial.checks())

    def _make(self, checks: list[Check]) -> bool:
        """Make checks one by one; False if a stop request came meanwhile."""
        for name, check in checks:
            began = time.perf_counter()
            with self._explained(name):
                result = check()
            self._rows.append((name, result, f"{time.perf_counter() - began:.2f}"))
            self._phases.heartbeat()
            if self._is_stopped():
                return False
        return True

    def _is_stopped(self) -> bool:
        self._stop.agree()
        return bool(self._stop)

    def _cheap_checks(self) -> list[Check]:
        """The checks of every start."""
        is_asked = self._setup.config.train.preflight == "on"
        wanted: list[tuple[bool, str, Callable[[], str]]] = [
            (jax.device_count() > 1, "all-reduce", self._reduce),
            (jax.process_count() > 1, "shared disk", self._share),
            (is_asked, "disk space", self._space),
            (bool(self._setup.data.manifests), "data", self._verify),
            (True, "tokenizer", self._tokenizer),
        ]
        return [(name, check) for is_wanted, name, check in wanted if is_wanted]

    def _reduce(self) -> str:
        connect()
        processes = jax.process_count()
        where = "1 process" if processes == 1 else f"{processes} processes"
        return f"{jax.device_count()} devices in {where}"

    def _share(self) -> str:
        require_shared(self._checkpointer.directory)
        return f"a new file was read by {jax.process_count()} processes"

    def _space(self) -> str:
        program, directory = self._setup.program, self._checkpointer.directory
        state = program.abstract_state()
        items = jax.eval_shape(lambda state: saved_items(state, program.trained), state)
        planned = planned_checkpoints(self._setup.config.train)
        size, steps = count_bytes(items), self._checkpointer.steps()
        return on_process_0(lambda: check_space(directory, size, planned, steps)) or ""

    def _tokenizer(self) -> str:
        tokenizer = self._setup.tokenizer
        return f"{tokenizer.name}, fingerprint {fingerprint(tokenizer)}"

    def _verify(self) -> str:
        """Compare shards with their manifest; all processes share them."""
        how, shards = self._setup.config.data.verify, stored_shards(self._setup.data.manifests)
        if how == "off":
            return f"{len(shards)} shards, not compared (data.verify off)"
        chosen = shards
        if how == "sampled":  # others at a later start
            begun = max(self._checkpointer.steps(), default=0)
            chosen = sampled(shards, f"{self._setup.config.train.seed} {begun}")
        size, share = sum(shard.size for shard in chosen), jax.process_count()
        reading = _Reading(size, self._display, self._phases)
        own: list[StoredShard | None] = list(chosen[jax.process_index() :: share])
        own += [None] * (-(-len(chosen) // share) - len(own))
        fault = None
        for shard in own:  # all processes have equally many, to agree on a stop
            if shard is not None and fault is None:
                fault = fault_of(shard, reading.advance)
            if self._is_stopped():
                return "stopped"
        if complaint := first_complaint(fault):
            raise UserError(complaint)
        return f"{len(chosen)} of {len(shards)} shards ({bytes_in_words(size)}) as prepared"

    @contextmanager
    def _explained(self, check: str) -> Iterator[None]:
        """Turn a failure into one message that says what to change."""
        try:
            yield
        except UserError as error:
            if isinstance(error, Followed):  # process 0 says it
                raise
            raise PreflightError(f"preflight, {check}: {error}", error.exit_code) from error
        except Exception as error:
            if isinstance(error, OSError) and (known := StorageError.of(error)):
                raise PreflightError(f"preflight, {check}: {known}", known.exit_code) from error
            reason = first_line(error)[:200]
            if isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY):
                less = LESS_MEMORY.get(check, "a smaller model")
                raise PreflightError(
                    f"preflight, {check}: out of memory ({reason}). Give {less}. {WITHOUT}", 1
                ) from error
            if is_process_0():
                self._display.say(f"preflight, {check}: {type(error).__name__}. {WITHOUT}")
            raise


class _Reading:
    """Lines about how much of the data has been read."""

    def __init__(self, total: int, display: Display, phases: Phases):
        self._total, self._display, self._phases = total, display, phases
        self._read, self._next = 0, time.monotonic() + LINE_SECONDS

    def advance(self, count: int) -> None:
        """Note that so many bytes more were read."""
        self._read += count
        self._phases.heartbeat()
        if time.monotonic() >= self._next:
            share = self._total / jax.process_count()
            read = f"{bytes_in_words(self._read)} of {bytes_in_words(int(share))}"
            self._display.say(f"data     {read} compared with the manifest")
            self._next = time.monotonic() + LINE_SECONDS

"""The trial of a run: everything that it will do, done once on a state that is thrown away.

Programs that are compiled here are those of the run, so nothing is compiled twice. The state is
drawn for the trial and is gone before the run's own is made, so memory never holds both.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import numpy as np

from gptjax.base.errors import StorageError, UserError
from gptjax.base.terminal import bytes_in_words
from gptjax.base.tree import Tree, count_bytes
from gptjax.cluster.agreement import is_process_0, on_process_0
from gptjax.cluster.phases import Phases
from gptjax.cluster.stop import StopRequest
from gptjax.data.loader import HostBatch
from gptjax.runs.checkpoint import Checkpointer
from gptjax.runs.display import Display
from gptjax.runs.naming import ROWS
from gptjax.runs.trace import Startup
from gptjax.training.compiling import compile_missing
from gptjax.training.feed import by_call
from gptjax.training.measuring import Measuring
from gptjax.training.setup import Setup
from gptjax.training.showing import Showing
from gptjax.training.state import TrainState, items_of, saved_items
from gptjax.training.validating import Validating

SCRATCH = ".preflight.tmp"  # RunDir.check knows by the ending that it is nothing of the user's
FEW_TOKENS = 4
Check = tuple[str, Callable[[], str]]


class Trial:
    """The work of one run on a scratch state, check by check."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Path,
        measuring: Measuring,
        showing: Showing,
        display: Display,
        stop: StopRequest,
        phases: Phases,
        startup: Startup,
    ):
        self._setup, self._measuring, self._showing = setup, measuring, showing
        self._display, self._startup = display, startup
        self._validating = Validating(setup, stop, phases.heartbeat)
        self._stop, self._phases = stop, phases
        self._scratch = scratch_beside(checkpoints)
        self._state: TrainState | None = None
        self._checkpointer: Checkpointer | None = None

    def checks(self) -> list[Check]:
        """What the run will do: first what needs no device, last what needs no other memory."""
        train = self._setup.config.train
        wanted: list[tuple[bool | int, str, Callable[[], str]]] = [
            (True, "plot", self._plot),
            (True, "compilation", self._compile),
            (True, "train step", self._step),
            (train.eval_every_steps, "validation", self._validate),
            (bool(train.evaluate_on), "evaluate-on", self._measure),
            (train.sample_every_steps, "sample", self._sample),
            (True, "save", self._save),
            (True, "restore", self._restore),
        ]
        return [(name, check) for is_wanted, name, check in wanted if is_wanted]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Leave nothing behind, in memory or on the disk, however this ends."""
        try:
            yield
        except BaseException:
            if jax.process_count() == 1:  # several would wait for each other here
                self._end()
            elif is_process_0():
                remove_scratch(self._scratch)
            raise
        self._end()

    def _end(self) -> None:
        self._forget_state()
        if self._checkpointer is not None:
            with suppress(UserError):
                self._checkpointer.close()
        on_process_0(lambda: remove_scratch(self._scratch))

    def _compile(self) -> str:
        self._startup.end("preflight")
        compile_missing(self._setup, 0, self._display, self._startup, self._phases)
        return "the train step"

    def _step(self) -> str:
        setup, train = self._setup, self._setup.config.train
        self._state = setup.program.initial_state()
        batches = (setup.source[step] for step in range(train.max_steps))
        first = next(by_call(batches, train, setup.ramp, 0))
        loss = self._stepped(first)
        rows = len(next(iter(first[0].values())))
        for form in setup.data.forms()[-1:]:  # the first batch may not be of the longest examples
            longest = {name: np.zeros((rows, *x.shape), x.dtype) for name, x in form.items()}
            self._stepped([longest] * len(first))
        return f"loss {loss:.4f}"

    def _stepped(self, batches: list[HostBatch]) -> float:
        """The loss of the last of these steps."""
        setup, call = self._setup, self._setup.feed.training(batches)
        program = setup.steps_of(call)
        self._state, metrics = program(self._state, call.batch, setup.key, *call.count)
        return float(np.ravel(jax.device_get(metrics["loss"]))[call.steps - 1])

    def _params(self) -> Tree:
        assert self._state is not None
        return self._setup.evaluated_params(self._state)

    def _validate(self) -> str:
        assert self._state is not None
        return self._validating.rehearse(self._state)

    def _measure(self) -> str:
        return self._measuring.try_out(self._params())

    def _sample(self) -> str:
        beat = self._phases.heartbeat
        self._showing.rehearse_sample(self._params(), self._stop, beat, FEW_TOKENS)
        return f"{FEW_TOKENS} tokens"

    def _plot(self) -> str:
        on_process_0(self._write_shown)
        return ", ".join(file.name for file in self._showing.files)

    def _write_shown(self) -> None:
        for file in self._showing.files:
            if file.is_dir():
                raise UserError(f"{file} is a directory; expected a file: move it away")
        try:
            for file in filter(Path.exists, self._showing.files):
                file.open("ab").close()
            self._scratch.mkdir(exist_ok=True)
            self._showing.rehearse_plot(self._scratch)
        except OSError as error:
            raise StorageError.of(error) or error from error

    def _save(self) -> str:
        assert self._state is not None
        setup, step = self._setup, int(self._state.step)
        self._checkpointer = Checkpointer(self._scratch / "checkpoints")
        items = saved_items(self._state, setup.program.trained)
        cursor = {**setup.data_identity(step), ROWS: setup.source.rows_before(step)}
        self._checkpointer.save(step, items, dataclasses.asdict(setup.config), cursor)
        self._checkpointer.wait()
        return bytes_in_words(count_bytes(items))

    def _restore(self) -> str:
        assert self._checkpointer is not None
        self._forget_state()
        program, said = self._setup.program, []
        wanted = items_of(program.abstract_state(), program.trained)
        restored = self._checkpointer.restore(wanted, said.append)
        if restored is None:
            raise UserError(f"the checkpoint that was just written is not there. {' '.join(said)}")
        delete(restored.items)
        return "as it was saved"

    def _forget_state(self) -> None:
        state, self._state = self._state, None
        delete(state)


def delete(tree: Tree) -> None:
    """Free the arrays of a tree at once, whoever still refers to them."""
    for leaf in jax.tree.leaves(tree):
        if not leaf.is_deleted():
            leaf.delete()


def scratch_beside(checkpoints: Path) -> Path:
    """Where a trial writes: on the same disk as the checkpoints."""
    return checkpoints.parent / SCRATCH


def remove_scratch(scratch: Path) -> None:
    """Remove what a trial has written, this one's or that of a start that was killed."""
    shutil.rmtree(scratch, ignore_errors=True)

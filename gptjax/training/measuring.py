"""Published tests in the middle of a run: `train.evaluate_on`, measured as by `gptjax.evaluate`.

Each is done on one device of every process, in float32, with the parameters that validation uses:
their average if there is one. Divided parameters are gathered for it, so one device has to hold the
whole model. All processes measure the same, so that none waits for another.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from gptjax.base.errors import UserError, first_line
from gptjax.base.tree import Tree
from gptjax.cluster.agreement import first_complaint
from gptjax.cluster.mesh import replicated
from gptjax.cluster.stop import StopRequest
from gptjax.config.names import parse_evaluation
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.evaluation.scoring import Request, Score, Scorer
from gptjax.evaluation.setting import Setting
from gptjax.generation.loaded import LoadedRun
from gptjax.runs.display import Display
from gptjax.runs.metrics import Row
from gptjax.training.setup import Setup


class Measuring:
    """The tests of one run. Their figures are `NAME/FIGURE` in metrics.jsonl."""

    def __init__(
        self, setup: Setup, stop: StopRequest, heartbeat: Callable[[], None], display: Display
    ):
        self._setup, self._stop, self._heartbeat = setup, stop, heartbeat
        self._display = display
        self._tests = dict(map(parse_evaluation, setup.config.train.evaluate_on))

    def is_in(self, row: Row) -> bool:
        """Whether a row of metrics.jsonl has a figure of every test."""
        return all(any(key.startswith(f"{name}/") for key in row) for name in self._tests)

    def rehearse(self) -> None:
        """Read all data and score nothing, so that a broken file ends the run before it begins.

        Raises the `UserError` of the first test that has one, on all processes.
        """
        scorer = _Rehearsal(self._setup.config.model, {})
        for name, file in self._tests.items():
            problem = None
            try:
                self._measured(name, file, scorer, 0, _silent)
            except UserError as error:
                problem = f"train.evaluate_on {name}={file}: {error}"
            if complaint := first_complaint(problem):
                raise UserError(complaint)

    def try_out(self, params: Tree) -> str:
        """Measure one item of every test, and return their names; raises whatever fails."""
        scorer = Scorer(self._setup.config.model, self._on_one_device(params))
        for name, file in self._tests.items():
            self._measured(name, file, scorer, 0, _silent, most=1)
            self._heartbeat()
        return ", ".join(self._tests)

    def measure(self, step: int, params: Tree) -> Row:
        """The figures of all tests; none after a stop request.

        A test that fails is named, and the run of a single process goes on without it.
        """
        if not self._tests:
            return {}
        scorer = Scorer(self._setup.config.model, self._on_one_device(params))
        row: Row = {}
        for name, file in self._tests.items():
            try:
                figures = self._measured(name, file, scorer, step, self._watched(scorer))
            except _StoppedError:
                return {}
            except Exception as error:
                if jax.process_count() > 1:  # the others would wait for this one
                    raise
                self._display.say(f"no {name} after step {step}: {first_line(error)[:200]}")
                continue
            row |= {f"{name}/{figure}": value for figure, value in figures.items()}
        return row

    def _measured(
        self,
        name: str,
        file: str,
        scorer: Scorer,
        step: int,
        bar: Any,
        most: int | None = None,
    ) -> Figures:
        config = self._setup.config
        run = LoadedRun(config, scorer.params, self._setup.tokenizer, step, f"step {step}")
        limit = most or config.train.evaluate_on_limit
        scorer.context = config.context
        say = self._display.say if isinstance(scorer, _Rehearsal) else lambda note: None
        setting = Setting(run, scorer, file, limit, bar=bar, note=lambda note: say(f"note: {note}"))
        return EVALUATIONS[name].measure(setting)

    def _on_one_device(self, params: Tree) -> Tree:
        """The whole parameters on this process's first device."""
        if not all(x.is_fully_replicated for x in jax.tree.leaves(params)):
            everywhere = replicated(self._setup.mesh)
            params = jax.jit(lambda tree: tree, out_shardings=everywhere)(params)
        return jax.tree.map(lambda x: x.addressable_data(0), params)

    def _watched(self, scorer: Scorer) -> Any:
        """A bar that shows nothing, tells the watchdog of every batch, and ends at a stop request.

        All processes come here equally often, as `StopRequest.agree` needs it.
        """

        @contextmanager
        def bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
            del total, what
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                before, done = done // scorer.batch_rows, done + count
                if done // scorer.batch_rows > before:
                    self._heartbeat()
                    self._stop.agree()
                    if self._stop:
                        raise _StoppedError

            yield advance

        return bar


class _StoppedError(Exception):
    """A stop request came in the middle of a test."""


class _Rehearsal(Scorer):
    """Scores nothing: it only sees that there are requests."""

    def score(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[Score]:
        """A log-probability of 0 for each."""
        del progress
        return [Score(0.0, False)] * len(requests)

    def token_logprobs(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """A log-probability of 0 for each token."""
        del progress
        return [np.zeros(len(request.continuation), np.float32) for request in requests]


@contextmanager
def _silent(total: int, what: str) -> Iterator[Callable[[int], None]]:
    del total, what
    yield lambda count: None

"""Samples and curves, which show a run to people. If one fails, the run goes on without it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax

from gptjax.base.errors import first_line
from gptjax.base.tree import Tree
from gptjax.cluster.agreement import exit_process, is_process_0
from gptjax.cluster.stop import StopRequest
from gptjax.config import Config
from gptjax.generation.during_training import sample_after
from gptjax.runs.curves import plot_curves
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.runs.metrics import Row
from gptjax.runs.recorded import Recorded
from gptjax.runs.run_page import write_run_page
from gptjax.runs.samples import append_sample, forget_samples_after, has_sample
from gptjax.tokenizers.plain import Tokenizer

OLD_SECONDS = 60.0
MADE_UP: list[Row] = [
    {"step": step, "train_loss": 9.0, "val_loss": 9.0, "learning_rate": 1e-3} for step in (1, 2)
]


class Showing:
    """samples.md, loss.png and report.html of one run; one line names each that fails."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        run_dir: RunDir,
        display: Display,
        unit: str = "token",
    ):
        self._config, self._tokenizer, self._unit = config, tokenizer, unit
        self._run_dir, self._display = run_dir, display
        self._plotted = time.monotonic()

    @property
    def is_old(self) -> bool:
        """Whether the curves and the page are more than a minute old."""
        return time.monotonic() - self._plotted > OLD_SECONDS

    @property
    def files(self) -> list[Path]:
        """The files that a run writes to show itself, whether or not they are there."""
        samples = [self._run_dir.samples] if self._config.train.sample_every_steps else []
        return [*samples, self._run_dir.curves, self._run_dir.report]

    def rehearse_sample(
        self, params: Tree, stop: StopRequest, heartbeat: Callable[[], None], tokens: int
    ) -> None:
        """Draw a few tokens by the programs of a sample, and keep none; raises whatever fails."""
        sample = self._config.sample
        fewer = replace(sample, max_new_tokens=min(tokens, sample.max_new_tokens))
        config = replace(self._config, sample=fewer)
        sample_after(0, config, params, self._tokenizer, stop, heartbeat)

    def rehearse_plot(self, directory: Path) -> None:
        """Show two made-up steps in another directory; raises whatever fails."""
        elsewhere = RunDir(directory)
        self._draw(MADE_UP, elsewhere.curves)
        write_run_page(Recorded(elsewhere, self._config, MADE_UP))

    def forget_after(self, step: int) -> None:
        """Drop the samples of steps that will run again."""
        with self._going_on(f"{self._run_dir.samples} was left as it is"):
            if is_process_0():
                forget_samples_after(self._run_dir.samples, step)

    def has_sample(self, step: int) -> bool:
        """Whether samples.md has the sample of a step, or cannot be read."""
        try:
            return has_sample(self._run_dir.samples, step)
        except (OSError, ValueError):
            return True

    def sample(
        self,
        step: int,
        params: Tree,
        stop: StopRequest,
        heartbeat: Callable[[], None],
        before_leaving: Callable[[], None],
    ) -> None:
        """Show a text and add it to samples.md, unless a stop request comes meanwhile.

        All processes together use parameters that are divided among them. If that fails, this
        process calls `before_leaving` and ends: the others may wait for it in the middle of a text,
        and nothing on the devices could tell them.
        """
        with self._going_on(f"no sample after step {step}"):
            try:
                text = sample_after(step, self._config, params, self._tokenizer, stop, heartbeat)
            except Exception as error:
                if all(map(_is_whole_here, jax.tree.leaves(params))):
                    raise
                before_leaving()
                exit_process(error)
            if text is not None and is_process_0():
                append_sample(self._run_dir.samples, step, text)
                self._display.say(f"sample after step {step}:\n{text}")

    def plot(self, rows: Sequence[Row]) -> bool:
        """Draw the curves of a run so far and write its page; returns whether it has curves."""
        self._plotted = time.monotonic()
        self.report(rows)
        with self._going_on(f"{self._run_dir.curves} was not drawn"):
            if is_process_0():
                self._draw(rows, self._run_dir.curves)
            return True
        return False

    def report(self, rows: Sequence[Row]) -> None:
        """Write report.html, the page about a run so far."""
        with self._going_on(f"{self._run_dir.report} was not written"):
            if is_process_0():
                write_run_page(Recorded(self._run_dir, self._config, rows))

    def _draw(self, rows: Sequence[Row], path: Path) -> None:
        train = self._config.train
        sizes = {row["tokens"] for row in rows if "tokens" in row}
        same = train.batch_rows is None and sizes == {train.batch_tokens}
        tokens = train.batch_tokens if same else None
        plot_curves(rows, tokens, self._run_dir.path.name, path, self._unit)

    @contextmanager
    def _going_on(self, failure: str) -> Iterator[None]:
        """Report an error in this block, and go on."""
        try:
            yield
        except Exception as error:
            self._display.say(f"{failure}: {type(error).__name__}: {first_line(error)[:200]}")


def _is_whole_here(leaf: jax.Array) -> bool:
    """Whether this process needs no other to use an array."""
    return leaf.is_fully_addressable or leaf.is_fully_replicated

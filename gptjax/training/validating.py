"""The validations of a run in progress, and their figures as metrics.jsonl records them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from gptjax.cluster.stop import StopRequest
from gptjax.evaluation.perplexity import Validation, evaluate_parts
from gptjax.runs.metrics import Row
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState


class Validating:
    """Measures the model on the fixed validation sets, with a heartbeat after each batch."""

    def __init__(self, setup: Setup, stop: StopRequest, heartbeat: Callable[[], None]):
        self._setup, self._stop, self._heartbeat = setup, stop, heartbeat

    def validate(self, state: TrainState) -> Validation | None:
        """The validation loss; None if a stop request comes meanwhile."""
        step, params = self._setup.program.eval_step, self._setup.evaluated_params(state)
        parts = [
            part._replace(batches=self._until_stopped(part.batches))
            for part in self._setup.validation_parts()
        ]
        result = evaluate_parts(lambda batch: step(params, batch), parts)
        return None if self._stop else result

    def rehearse(self, state: TrainState) -> str:
        """Measure one batch, and return what came of it in words; the program is kept."""
        part = self._setup.validation_parts()[0]
        batch = next(iter(part.batches))
        params = self._setup.evaluated_params(state)
        sums = jax.device_get(self._setup.program.eval_step(params, batch))
        return f"1 batch, {float(sums['tokens']):,.0f} {self._setup.task.unit}s"

    def _until_stopped(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield batch
            self._heartbeat()
            self._stop.agree()
            if self._stop:
                return

    def values(self, validation: Validation) -> Row:
        """A validation as metrics.jsonl records it."""
        figures = self._setup.task.figures(self._setup.config, validation.sums)
        return {
            "val_loss": validation.loss,
            "val_stderr": validation.stderr,
            "val_bits_per_byte": validation.bits_per_byte,
            **{f"val_loss/{name}": loss for name, loss in validation.by_source},
            **{f"val_{name}": value for name, value in figures.items()},
        }

"""What a run remembers of its losses, kept in the cursors of its checkpoints."""

from typing import Any

from jax.sharding import Mesh

from gptjax.config import TrainConfig
from gptjax.runs.naming import ROLLBACKS
from gptjax.training.spikes import RiseWatch, as_numbers, from_numbers, placed_statistics
from gptjax.training.state import TrainState

LOSSES, RISING = "losses", "rising"  # in a cursor


class Safeguards:
    """The watch over the losses of one run, and the times that it went back."""

    def __init__(self, train: TrainConfig, mesh: Mesh):
        self.watch = RiseWatch(train.rollback_zscore)
        self.rollbacks = 0
        """Times that the run has gone back."""
        self.went_to: tuple[int, int] | None = None
        """The step that it went back to last, and the rows of the data from which it goes on."""
        self._mesh = mesh

    def cursor(self, state: TrainState) -> dict[str, Any]:
        """What a checkpoint of this moment has to keep; nothing if nothing is watched."""
        kept: dict[str, Any] = {}
        if state.losses is not None:
            kept[LOSSES] = as_numbers(state.losses)
        if (rising := self.watch.state) is not None:
            kept[RISING] = rising
        return kept | ({ROLLBACKS: self.rollbacks} if self.rollbacks else {})

    def restored(self, state: TrainState, cursor: dict[str, Any]) -> TrainState:
        """The state of a checkpoint with its statistics; the watch goes on from there as well.

        A checkpoint that does not have them begins them anew.
        """
        self.watch.restore(cursor.get(RISING))
        if state.losses is None or LOSSES not in cursor:
            return state
        kept = from_numbers(cursor[LOSSES])
        return state._replace(losses=placed_statistics(self._mesh, kept))

    def rows_after(self, step: int, rows: int, cursor: dict[str, Any]) -> int:
        """The place in the data after a restored step, of which its own cursor says `rows`.

        It is another one if the run went back to this checkpoint after it was saved.
        """
        if self.went_to is None or self.went_to[0] != step:
            return rows
        return self.went_to[1] if cursor.get(ROLLBACKS, 0) < self.rollbacks else rows

"""A NaN on one device of eight is refused by all, and a crash around it changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from faulty_runs import STEPS, crashed, train_here
from killed_runs import assert_same_run, final_state, rows

from gptjax.base.tree import named_leaves
from gptjax.data.loader import StepSource
from gptjax.training import tasks

pytestmark = pytest.mark.slow
MARK, SPOILT_ROW, SPOILT_STEP = 255, 3, 10  # a byte that no text has; the steps count from 1


@pytest.fixture
def spoilt(monkeypatch) -> None:
    """Step 10 has a row, for the fourth device alone, whose gradients are not finite."""
    batch_of, losses_of = StepSource.__getitem__, tasks.language_modelling

    def batch(source: StepSource, step: int) -> dict:
        found = batch_of(source, step)
        if step + 1 == SPOILT_STEP:
            found = {**found, "tokens": found["tokens"].copy()}
            found["tokens"][SPOILT_ROW] = MARK
        return found

    def losses(*args, **options):
        made = losses_of(*args, **options)

        def loss(params, batch, key):
            is_spoilt = (batch["tokens"] == MARK).all(1).any()
            return made.loss(params, batch, key) * jnp.where(is_spoilt, jnp.nan, 1.0)

        return made._replace(loss=loss)

    monkeypatch.setattr(StepSource, "__getitem__", batch)
    monkeypatch.setattr(tasks, "language_modelling", losses)


@pytest.mark.usefixtures("spoilt")
def test_a_nan_on_one_device_of_a_run(prepared, tmp_path, report):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    assert train_here(prepared, tmp_path / "whole") == 0
    found = rows(tmp_path / "whole")
    assert [row["step"] for row in found if "grad_norm" not in row] == [SPOILT_STEP]
    state = final_state(tmp_path / "whole")
    assert int(state.opt_state.total_notfinite) == 1
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(state.params).values())
    for step in (SPOILT_STEP, SPOILT_STEP + 4):  # one before a checkpoint knows of it
        crashed(prepared, tmp_path / "broken", step)
    assert train_here(prepared, tmp_path / "broken") == 0
    assert len(found) == STEPS
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    report("NaN on one device")

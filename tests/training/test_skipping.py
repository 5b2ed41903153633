"""A gradient that is not finite on one device skips the step on all, however they share the model.

That a step without divided parameters does so is test_step's; a whole run of it is in tests/faults.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import EXHAUSTIVE, ROOT
from killed_runs import rows, trained
from paired_runs import ended_pair, start_pair
from small_runs import tiny
from spoiling import STEP, spoil

from gptjax.base.tree import named_leaves
from gptjax.data.manifest import Manifest
from gptjax.training.setup import Setup


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [
        {"mesh.fsdp": 2, "mesh.tensor": 2, "train.skip_zscore": 6.0},
        pytest.param({"mesh.fsdp": 4}, marks=EXHAUSTIVE),
        pytest.param({"mesh.tensor": 2, "train.updates_per_call": 2}, marks=EXHAUSTIVE),
    ],
    ids=lambda split: "-".join(split),
)
def test_every_part_of_the_model_stays_as_it_was(prepared, monkeypatch, split):
    spoil(monkeypatch.setattr)
    made = Setup(tiny(prepared, {**split, "train.batch_tokens": 512, "train.micro_batch": 1}))
    state, before = made.program.initial_state(), None
    for step in range(STEP + 1):
        call = made.feed.training([made.source[step]])
        state, metrics = made.train_steps(state, call)
        spoilt = step + 1 == STEP
        assert np.ravel(metrics["not_finite"])[0] == spoilt
        after = {
            name: [np.array(part.data) for part in leaf.addressable_shards]
            for name, leaf in named_leaves((state.params, state.opt_state.inner_state)).items()
        }
        same = before is not None and all(
            np.array_equal(x, y)
            for name in after
            for x, y in zip(after[name], before[name], strict=True)
        )
        assert same == spoilt
        assert all(np.isfinite(x).all() for parts in after.values() for x in parts)
        before = after
    assert int(jax.device_get(state.opt_state.total_notfinite)) == 1
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state.params)} == {8}


def options(data: Manifest) -> list[str]:
    values = [
        *("--config", "tiny", "--run-dir", "run", "--data.path", data.directory),
        *("--model.unroll", 1, "--train.max-steps", 8, "--optim.warmup-steps", 2),
        *("--train.batch-tokens", 512, "--train.micro-batch", 4, "--train.eval-every-steps", 0),
        *("--train.preflight", "off"),
    ]
    return [str(value) for value in values]


@pytest.mark.slow
def test_two_processes_skip_the_same_step(prepared, tmp_path: Path, one_compilation_for_all):
    before = [f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})", "import spoiling"]
    before.append("spoiling.spoil()")
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    trained(options(prepared), tmp_path / "alone", *before)
    codes, said = ended_pair(start_pair(options(prepared), tmp_path / "together", *before))
    assert codes == [0, 0], said
    found = rows(tmp_path / "together")
    assert [row["step"] for row in found if "skipped" in row] == [STEP]
    assert found[STEP - 1]["skipped"] == "not finite"
    for ours, theirs in zip(found, rows(tmp_path / "alone"), strict=True):
        losses = [row.get("train_loss", 0.0) for row in (ours, theirs)]  # none where it is NaN
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert ours["learning_rate"] == theirs["learning_rate"]

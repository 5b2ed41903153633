"""Another kind of training is one file; its batches pass through the same code as pretraining's."""

import dataclasses
import json
import math
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, environment_on, without_speed
from second_task import LabelledRows

from gptjax.base.errors import ConfigError
from gptjax.base.tree import named_leaves
from gptjax.cluster.mesh import make_mesh, put_rows
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.config.presets import load_config
from gptjax.data.loader import StepSource
from gptjax.training import fit
from gptjax.training.program import assemble
from gptjax.training.setup import Setup
from gptjax.training.state import TrainState

STEPS, CONTEXT = 6, 16


def labelled(**train: Any) -> Config:
    """The tiny config for the second task: 8 rows a step, evaluated and saved every 3."""
    tiny = load_config("tiny")
    values = {"batch_tokens": 8 * CONTEXT, "micro_batch": 1, "max_steps": STEPS, "context": CONTEXT}
    often = {"eval_every_steps": 3, "save_every_steps": 3, "eval_tokens": None}
    return dataclasses.replace(
        tiny,
        task="labelled",
        model=dataclasses.replace(tiny.model, n_ctx=CONTEXT, unroll=1),
        train=dataclasses.replace(tiny.train, **{**values, **often, **train}),
    )


def rows_of(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_speed(json.loads(line)) for line in lines]


def weights_of(config: Config) -> list[float]:
    """What the targets of each step count together, from the examples alone."""
    data = LabelledRows(config)
    source = StepSource(data, batch_schedule(config), STEPS, config.train.seed)
    return [float(source[i]["counts"][:, :-1].sum() + 8) for i in range(STEPS)]


@pytest.mark.parametrize("updates_per_call", [1, 3])
@pytest.mark.slow
def test_the_whole_loop_gives_each_step_the_mask_of_its_own_rows(tmp_path, updates_per_call):
    """Weights that were kept from an earlier batch of the same shape would show here."""
    config = labelled(updates_per_call=updates_per_call)
    assert fit.fit(config, tmp_path) == 0
    rows, expected = rows_of(tmp_path), weights_of(config)
    assert len(set(expected)) > STEPS // 2
    assert [row["tokens"] for row in rows] == expected
    assert [i + 1 for i, row in enumerate(rows) if "val_loss" in row] == [3, 6]
    assert "val_bits_per_byte" not in rows[-1]
    found = rows[-1]["val_loss/one"], rows[-1]["val_loss/two"]
    assert rows[-1]["val_loss"] == pytest.approx(np.mean(found), rel=1e-6)
    assert rows[-1]["val_loss"] < rows[2]["val_loss"] < math.log(257)


def gradients(devices: int, batch: dict[str, np.ndarray], config: Config) -> tuple[float, dict]:
    """Loss and raw gradients of one step, and what an evaluation of its rows adds up to."""
    made = assemble(config, make_mesh(devices))
    optimizer = optax.chain(optax.snapshot("raw", lambda grads: grads), made.optimizer)
    made = dataclasses.replace(made, optimizer=optimizer)
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda x: np.float32(0.1 * draw(x.shape)), made.abstract_state().params)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    rows = {name: x.reshape(8 // devices, devices, *x.shape[1:]) for name, x in batch.items()}
    state, metrics = jax.jit(made.step)(state, put_rows(made.mesh, rows, 1), jax.random.key(0))
    return float(metrics["loss"]), named_leaves(optax.tree.get(state.opt_state, "raw"))


@pytest.mark.slow
def test_eight_devices_have_the_gradients_of_one():
    config = LabelledRows(labelled()).resolved(labelled())
    batch = StepSource(LabelledRows(config), batch_schedule(config), STEPS, 0)[0]
    loss, expected = gradients(1, batch, config)
    found, leaves = gradients(8, batch, config)
    assert found == pytest.approx(loss, rel=1e-6)
    for name, leaf in leaves.items():
        error = np.linalg.norm(np.float64(leaf) - np.float64(expected[name]))
        assert error <= 2e-6 * np.linalg.norm(expected[name]), name


def test_a_task_that_is_in_no_table_is_refused_with_those_that_are(tmp_path):
    config = dataclasses.replace(labelled(), task="labeled")
    with pytest.raises(ConfigError) as caught:
        Setup(config)
    (problem,) = caught.value.problems
    assert "unknown task 'labeled'" in problem


def command(run: Path, kill_after: int, *flags: object) -> list[str]:
    words = {
        "config": "tiny", "task": "labelled", "run-dir": run, "model.n-ctx": CONTEXT,
        "model.unroll": 1, "train.batch-tokens": 8 * CONTEXT, "train.micro-batch": 1,
        "train.max-steps": 12, "train.eval-every-steps": 4, "train.save-every-steps": 4,
        "train.eval-tokens": 400,
    }  # fmt: skip
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    script = str(ROOT / "tests" / "second_task.py")
    return [sys.executable, script, str(kill_after), *given, *map(str, flags)]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_and_two_processes_agree(
    tmp_path, one_compilation_for_all
):
    def train(run: Path, kill_after: int = 0) -> int:
        return subprocess.run(command(run, kill_after), env=environment_on(1)).returncode

    whole, killed, together = (tmp_path / name for name in ("whole", "killed", "together"))
    assert train(whole) == 0
    assert train(killed, kill_after=6) == -signal.SIGKILL
    assert train(killed) == 0
    assert rows_of(killed) == rows_of(whole)
    assert (killed / "log.txt").read_text().count("resuming") == 1

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command(together, 0, *("--coordinator", address, "--processes", 2, "--process", i)),
            env=environment_on(4),
        )
        for i in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    for ours, theirs in zip(rows_of(together), rows_of(whole), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        if "val_loss" in theirs:
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)

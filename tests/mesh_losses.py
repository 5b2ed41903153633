"""Train twenty steps on one mesh and print the results as JSON; for test_parallel.

    python mesh_losses.py DATA FSDP TENSOR [checkpoint directory]

With a directory, the checkpoint in it is restored first, if there is one, and one is written last.
"""

import json
import os
import sys
from pathlib import Path

sizes = [int(n) for n in sys.argv[1:4]]
DATA, FSDP, TENSOR = sizes
COUNT = DATA * FSDP * TENSOR
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={COUNT} --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from gptjax.cluster.mesh import make_mesh, put_rows
from gptjax.config import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.data.examples import IS_REAL
from gptjax.model.places import ModelSharding
from gptjax.runs.checkpoint import Checkpointer
from gptjax.training.program import assemble
from gptjax.training.state import items_of, saved_items, state_of

STEPS, MICRO_STEPS, ROWS, CONTEXT, VOCAB = 20, 2, 8, 16, 200
MODEL = ModelConfig(
    n_layer=2, n_head=8, n_embd=64, n_ctx=CONTEXT, n_vocab=VOCAB, dtype="float32", remat="full"
)
OPTIM = OptimConfig(warmup_steps=3, peak_lr=1e-3)


def main() -> None:
    """Restore or draw, train, evaluate, save, print."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    train = TrainConfig(max_steps=2 * STEPS, loss_chunk_tokens=50, seed=0)
    config = Config(model=MODEL, optim=OPTIM, train=train)
    program = assemble(config, mesh := make_mesh(split=ModelSharding(FSDP, TENSOR)))
    abstract = program.abstract_state()
    state, checkpointer = program.initial_state(), None
    if len(sys.argv) > 4:
        checkpointer = Checkpointer(Path(sys.argv[4]))
        restored = checkpointer.restore(items_of(abstract), lambda _: None)
        if restored is not None:
            state = state_of(restored.step, restored.items, abstract)
    begin = int(state.step)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    step, key = program.train_step, program.key()
    found, batch = [], None
    for i in range(begin, begin + STEPS):
        rng = np.random.default_rng(i)
        # half of the vocabulary, so that there is something to learn
        tokens = rng.integers(0, VOCAB // 2, (MICRO_STEPS, ROWS, CONTEXT + 1), dtype=np.int32)
        weights = np.float32(rng.random((MICRO_STEPS, ROWS, CONTEXT)) < 0.8)
        batch = put_rows(mesh, {"tokens": tokens, "weights": weights}, axis=1)
        state, metrics = step(state, batch, key)
        found.append({name: float(value) for name, value in metrics.items()})
    assert jax.tree.map(lambda x: x.sharding, state) == places
    rows = jax.tree.map(lambda x: np.asarray(x)[0], batch)
    rows = put_rows(mesh, {**rows, IS_REAL: np.ones(ROWS, np.float32)}, axis=0)
    sums = program.eval_step(state.params, rows)
    if checkpointer is not None:
        checkpointer.save(int(state.step), saved_items(state), {}, {})
        checkpointer.close()
    local = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(state))
    evaluation = {name: float(value) for name, value in sums.items()}
    print(json.dumps({"steps": found, "evaluation": evaluation, "bytes": local}))


main()

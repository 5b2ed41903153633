"""gptjax's side of instruction tuning: epochs through the trainer's own loader, feed and step."""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from harness import Figures, Round, Skipped
from shapes import Shape, model_config

from gptjax.base.errors import UserError
from gptjax.cluster.compiler import keep_freed_memory
from gptjax.config import Config, DataConfig, InstructConfig, OptimConfig, TrainConfig
from gptjax.data.epochs import steps_per_epoch
from gptjax.data.instruct import Instructions
from gptjax.data.loader import batches_from, read_ahead
from gptjax.data.packing import PackedRows
from gptjax.model.size import parameter_count
from gptjax.training.setup import Setup


def tune(
    shape: dict, tokenizer: str, path: str, lengths: Any, rows: int, out: str | None = None
) -> tuple[Round, dict]:
    """An epoch a round, after a few untimed steps; `out` gets the tokens and weights as JSON."""
    model = model_config(Shape(**shape))
    keep_freed_memory(parameter_count(model))  # as the train verb does
    config = Config(
        task="instruct",
        model=model,
        data=DataConfig(examples=path, tokenizer=tokenizer, val_fraction=0.0, test_fraction=0.0),
        instruct=InstructConfig(lengths=lengths),
        optim=OptimConfig(warmup_steps=10),
        train=TrainConfig(
            batch_rows=rows, micro_batch=rows, epochs=1000, eval_every_steps=0, sample_every_steps=0
        ),
    )
    try:
        setup = Setup(config)
    except UserError as error:
        raise Skipped(str(error)) from error
    data: Any = setup.data
    assert isinstance(data, Instructions)
    items = data.items[0]
    if out is not None:
        pairs = [(item.tokens.tolist(), item.weights.tolist()) for item in items]
        Path(out).write_text(json.dumps(pairs))
    setup.compile_steps(0)
    state, position = setup.program.initial_state(), 0
    steps = steps_per_epoch(len(data.train), rows)

    def run(count: int) -> float:
        nonlocal state, position
        started, previous = time.perf_counter(), None
        with batches_from(setup.source, position) as batches:
            calls = read_ahead(islice(batches, count), lambda batch: setup.feed.training([batch]))
            for call in calls:
                state, metrics = setup.train_steps(state, call)
                if previous is not None:
                    float(previous)  # a step late, as in the trainer
                previous = metrics["loss"]
        jax.block_until_ready((state, previous))
        position += count
        return time.perf_counter() - started

    def one_round() -> Figures:
        return {"seconds": run(steps)}

    run(2)
    facts: dict[str, Any] = {
        "tokens": sum(len(item.tokens) for item in items),
        "learnt": sum(float(item.weights.sum()) for item in items),
        "steps": steps,
    }
    if isinstance(data.train, PackedRows):
        facts["filled"] = data.train.filled
    return one_round, facts

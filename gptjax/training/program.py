"""The compiled part of a run, from its config and a mesh: the train step and the evaluation step.

The trainer, `plan --compile`, the benches and the tests all compile their program here. Only a key
is allocated, and nothing is run, so the mesh may consist of virtual or absent devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from gptjax.base.tree import Tree
from gptjax.cluster.compiler import compiler_options
from gptjax.cluster.mesh import BatchLayout, abstract_batch, put_everywhere, replicated, sharding_on
from gptjax.config import Config, ModelConfig
from gptjax.data.examples import IS_REAL, Example
from gptjax.model.freezing import EVERYTHING, Trained, trained_leaves
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.products import matmul_precision
from gptjax.training.dropout import dropout_generator
from gptjax.training.objectives import Losses
from gptjax.training.optimizer import make_optimizer
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.spikes import abstract_statistics, placed_statistics
from gptjax.training.state import TrainState, abstract_state, drawing
from gptjax.training.step import (
    StepFunction,
    make_eval_step,
    make_step,
    make_train_step,
    make_train_steps,
)
from gptjax.training.tasks import task_of


@dataclass(frozen=True)
class Program:
    """The result of `assemble`; any part can be replaced before the program is traced."""

    config: Config
    mesh: Mesh
    losses: Losses
    form: Example
    """An example, for its shapes and types."""
    optimizer: optax.GradientTransformationExtraArgs
    trained: Trained = EVERYTHING
    """The parameters that a step changes."""

    @cached_property
    def specs(self) -> Tree:
        """How each parameter is divided over the mesh."""
        return param_specs(parameter_shapes(self.config.model), sharding_on(self.mesh))

    @cached_property
    def places(self) -> TrainState:
        """Where every leaf of the state lies."""
        return jax.tree.map(lambda x: x.sharding, self.abstract_state())

    @property
    def precision(self) -> str:
        """The precision of products that do not name their own."""
        return matmul_precision(self.config.model, self.mesh.devices.flat[0])

    @property
    def step(self) -> StepFunction:
        """`step(state, batch, key)` for use within a jit; the batch has axes [A, B]."""
        model, train = self.config.model, self.config.train
        return make_step(
            self.losses,
            self.optimizer,
            learning_rate_schedule(self.config.optim, train.max_steps),
            self.mesh,
            self.specs,
            dropout=uses_dropout(model),
            precision=self.precision,
            wire_dtype=train.wire_dtype,
            trained=self.trained,
            skip_zscore=train.skip_zscore,
        )

    @cached_property
    def train_step(self) -> jax.stages.Wrapped:
        """Compile-ready steps of one call: for one batch, or for `updates_per_call` batches."""
        several = self.config.train.updates_per_call > 1
        return (make_train_steps if several else make_train_step)(self.step, self.places)

    @cached_property
    def eval_step(self) -> jax.stages.Wrapped:
        """Compile-ready `step(params, batch) -> sums`; the batch has axes [B]."""
        return make_eval_step(self.losses, self.mesh, self.specs, self.precision)

    def arguments(self, layout: BatchLayout, form: Any = None) -> tuple:
        """Shapes, types and placement of the train step's arguments, with nothing allocated.

        `form` is an example of another length than the program's own.
        """
        most = self.config.train.updates_per_call
        batch = abstract_batch(self.mesh, layout, self.form if form is None else form, most)
        everywhere = replicated(self.mesh)
        key = jax.eval_shape(lambda: jax.random.key(0, impl=dropout_generator(self.mesh.size)))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
        count = [jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)] if most > 1 else []
        return (self.abstract_state(), batch, key, *count)

    def compile(self, layout: BatchLayout, form: Any = None) -> jax.stages.Compiled:
        """The train step for batches of one layout, of examples like `form`."""
        lowered = self.train_step.lower(*self.arguments(layout, form))
        return lowered.compile(compiler_options(self.mesh))

    def abstract_state(self) -> TrainState:
        """Shapes, types and placement of the state, for restoring into."""
        return self._abstract

    @cached_property
    def _abstract(self) -> TrainState:
        state = abstract_state(self.config.model, self.optimizer, self.mesh, self.trained)
        if self.config.train.skip_zscore is None:
            return state
        return state._replace(losses=abstract_statistics(self.mesh))

    def initial_state(self) -> TrainState:
        """Freshly drawn parameters, and a new optimizer's state."""
        state = self._drawing(jax.random.key(self.config.train.seed))
        if self.config.train.skip_zscore is None:
            return state
        return state._replace(losses=placed_statistics(self.mesh))

    @cached_property
    def _drawing(self) -> Callable[[Array], TrainState]:
        """Draws a state; a second time it is not compiled again."""
        return drawing(self.config.model, self.optimizer, self.mesh, self.trained)

    def key(self) -> Array:
        """The run's key, from which dropout is drawn."""
        generator = dropout_generator(self.mesh.size)
        # as bits, because a key itself cannot be put on the devices of other processes
        bits = jax.random.key_data(jax.random.key(self.config.train.seed, impl=generator))
        wrap = jax.jit(
            lambda bits: jax.random.wrap_key_data(bits, impl=generator),
            out_shardings=replicated(self.mesh),
        )
        return wrap(put_everywhere(self.mesh, jax.device_get(bits)))


def assemble(config: Config, mesh: Mesh, eot_id: int = 0) -> Program:
    """The program of a config whose vocabulary is known and whose attention is chosen.

    `eot_id` begins a document; with `data.document_mask` attention stays inside documents.
    """
    task, model = task_of(config), config.model
    form = task.form(config)
    if IS_REAL in form:
        raise ValueError(f"{IS_REAL} is reserved: examples of {config.task} have such a field")
    return Program(
        config,
        mesh,
        task.losses(config, sharding_on(mesh), eot_id if config.data.document_mask else None),
        form,
        make_optimizer(
            config.optim, config.train.max_steps, dynamic_loss_scale=model.dtype == "float16"
        ),
        trained_leaves(model, config.optim.trainable, config.optim.trainable_layers),
    )


def uses_dropout(model: ModelConfig) -> bool:
    """Whether a step draws random numbers."""
    at_most = max(model.embd_pdrop, model.attn_pdrop, model.resid_pdrop, model.clf_pdrop)
    return at_most > 0 or (model.lora_rank > 0 and model.lora_dropout > 0)

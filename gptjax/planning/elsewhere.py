"""The programs of a config, compiled for GPUs that are not here.

They are the programs that a run would compile: the train step, an evaluation batch, and the loop
that draws tokens for samples. Nothing is allocated and nothing runs. This module imports jax: call
`gptjax.planning.absent.become_compiler` before importing it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from gptjax.cluster.compiler import compiler_options
from gptjax.cluster.mesh import batch_layout, make_mesh, rows_per_device, rows_spec
from gptjax.config import Config
from gptjax.data.examples import IS_REAL
from gptjax.generation.programs import Programs
from gptjax.model.cache import cache_length
from gptjax.model.decoder import decoder_config
from gptjax.model.gpt import parameter_shapes
from gptjax.model.places import ModelSharding
from gptjax.planning.absent import absent_devices, answering_for, gpu_options
from gptjax.planning.kernels import Kernel, kernels
from gptjax.planning.layout import Layout
from gptjax.planning.memory import memory
from gptjax.planning.module import Module, read_module
from gptjax.planning.targets import Target
from gptjax.training.autotune import largest_micro_batch, memory_needed
from gptjax.training.program import assemble

STEP, EVALUATION, DECODING = "train step", "evaluation", "decoding"
FAR_TOO_LARGE = 1.2  # times what fits, by a planner that is within 10% of the compiler
SEQUENCES = 1  # that decoding draws at once, as for a sample during training


@dataclass(frozen=True)
class CompiledProgram:
    """A program as XLA would run it on each of the GPUs."""

    name: str
    """`STEP`, `EVALUATION` or `DECODING`."""
    seconds: float
    """Time of lowering and compiling here."""
    arguments: int
    temporaries: int
    needed: int
    """Bytes on each GPU in all; donated arguments make room for results."""
    hlo: str

    @cached_property
    def module(self) -> Module:
        """Its instructions."""
        return read_module(self.hlo)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Its kernels."""
        return kernels(self.module)


class GpuCompiler:
    """XLA's compiler for the GPUs of a layout. Micro-batches must be numbers."""

    def __init__(self, target: Target, layout: Layout):
        self.target, self.layout = target, layout
        devices = absent_devices(target, layout)
        self.mesh = make_mesh(devices, ModelSharding(layout.fsdp, layout.tensor))
        self._steps: dict[Config, CompiledProgram] = {}

    def step(self, config: Config) -> CompiledProgram:
        """The train step."""
        if config not in self._steps:
            program = assemble(config, self.mesh)
            rows = batch_layout(config, self.layout.groups, int(config.train.micro_batch))
            options = compiler_options(self.mesh)
            found = self._compiled(STEP, program.train_step, program.arguments(rows), options)
            self._steps[config] = found
        return self._steps[config]

    def evaluation(self, config: Config) -> CompiledProgram:
        """The program of a validation batch, of as many rows as a micro-step has."""
        program = assemble(config, self.mesh)
        rows = int(config.train.micro_batch) * self.layout.groups
        place = NamedSharding(self.mesh, rows_spec(self.mesh, axis=0))
        batch = {
            name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=place)
            for name, x in program.form.items()
        }
        batch[IS_REAL] = jax.ShapeDtypeStruct((rows,), np.float32, sharding=place)
        params = program.abstract_state().params
        return self._compiled(EVALUATION, program.eval_step, (params, batch))

    def decoding(self, config: Config) -> CompiledProgram:
        """The program that draws tokens of one sequence, whose cache holds a whole context."""
        model = config.model
        programs = Programs(decoder_config(model, model.dtype), self.mesh)
        params = jax.eval_shape(
            lambda given: programs.place(given, donate=False), parameter_shapes(model)
        )
        slots = jax.eval_shape(lambda: programs.empty(SEQUENCES, cache_length(config.context)))
        steps, wants_top = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.bool_)
        decode = jax.jit(programs.decode, donate_argnums=1)
        return self._compiled(DECODING, decode, (params, slots, steps, wants_top))

    def micro_batch(self, config: Config, guess: int) -> int:
        """The largest micro-batch whose step fits the GPU, by compiling; `guess` comes first.

        Nothing is compiled that the planner finds far too large. Raises `UserError` if not even one
        row fits.
        """
        limit = self.target.gpu.pool

        def needed(rows: int) -> int:
            planned = memory(config, self.layout, rows).total
            if planned > FAR_TOO_LARGE * limit:
                return planned
            train = replace(config.train, micro_batch=rows)
            return self.step(replace(config, train=train)).needed

        return largest_micro_batch(
            rows_per_device(config, self.layout.groups), needed, limit, guess
        )

    def _compiled(
        self, name: str, function: Any, arguments: tuple, options: Mapping[str, Any] | None = None
    ) -> CompiledProgram:
        """Without `options` as jax compiles what is called: so a run does all but its step."""
        began, device = time.perf_counter(), self.mesh.devices.flat[0]
        with answering_for(device):
            lowered = function.lower(*arguments)
        compiled = lowered.compile({**(options or {}), **gpu_options()})
        found = compiled.memory_analysis()
        return CompiledProgram(
            name,
            time.perf_counter() - began,
            found.argument_size_in_bytes,
            found.temp_size_in_bytes,
            memory_needed(compiled),
            str(compiled.as_text()),
        )

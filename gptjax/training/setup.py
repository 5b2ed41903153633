"""Everything of a run that stays the same while it runs, built once and announced at its start."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from gptjax.budget import gibibytes, parameter_count
from gptjax.config import Config
from gptjax.data.corpus import Corpus
from gptjax.data.loader import StepSource, require_vocabulary, training_batch, validation_batches
from gptjax.data.manifest import Manifest, read_tokenizer
from gptjax.data.tokenizers import Tokenizer, bytes_per_token, document_separator
from gptjax.data.windows import TokenWindows
from gptjax.errors import UserError
from gptjax.evals.perplexity import ValidationPart, target_bytes
from gptjax.model.gpt import parameter_shapes
from gptjax.model.parallel import param_specs
from gptjax.model.products import matmul_precision
from gptjax.ramp import batch_ramp
from gptjax.training.agreement import first_says
from gptjax.training.calls import Call
from gptjax.training.compiler import compiler_options
from gptjax.training.display import Display
from gptjax.training.fitting import (
    choose_attention,
    largest_micro_batch,
    memory_limit,
    memory_needed,
)
from gptjax.training.guard import with_loss_scale
from gptjax.training.mesh import (
    BatchLayout,
    abstract_batch,
    batch_layout,
    make_mesh,
    put_rows,
    replicated,
    row_groups,
    rows_per_device,
    split_of,
)
from gptjax.training.optimizer import averaged_parameters, decay_table, make_optimizer
from gptjax.training.schedules import learning_rate_schedule
from gptjax.training.state import TrainState, abstract_state, initial_state
from gptjax.training.step import (
    Metrics,
    make_eval_step,
    make_train_step,
    make_train_steps,
    make_update,
)
from gptjax.training.tasks import TASKS

# The cheapest of jax's generators that is independent of the number of devices: a quarter of
# threefry's time on a CPU, and few enough operations to be fused with what uses the bits.
DROPOUT_GENERATOR = "philox2x32"
# On several devices jax 0.10 cannot compile it ("Unable to convert MHLO to StableHLO", of mulhi).
DIVIDED_DROPOUT_GENERATOR = "threefry2x32"


def dropout_generator(n_devices: int) -> str:
    """The random number generator of a run's key."""
    return DROPOUT_GENERATOR if n_devices == 1 else DIVIDED_DROPOUT_GENERATOR


def resolve(config: Config, manifest: Manifest) -> Config:
    """Fill in what only the data knows: tokenizer and vocabulary size."""
    n_vocab = require_vocabulary(manifest, config.model.n_vocab, config.data.tokenizer)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, n_vocab=n_vocab),
        data=dataclasses.replace(config.data, tokenizer=manifest.tokenizer),
    )


class Setup:
    """Data, mesh, optimizer and steps of one config. Raises `UserError` before any training."""

    def __init__(self, config: Config):
        self.corpus = Corpus(config)
        self.manifest = self.corpus.manifest
        self.config = config = resolve(config, self.manifest)
        self.tokenizer: Tokenizer = read_tokenizer(self.manifest)
        train, context = config.train, config.context
        if train.sample_every_steps:
            self.tokenizer.encode(config.sample.prompt)  # fails now, not at the first sample
        split = split_of(config.mesh, jax.device_count(), jax.local_device_count())
        split.check(config.model)
        self.mesh = make_mesh(split=split)
        rows_per_device(config, row_groups(self.mesh))
        # by way of its bits, since a key itself cannot be put where other processes have devices
        generator = dropout_generator(self.mesh.size)
        bits = np.asarray(jax.random.key_data(jax.random.key(train.seed, impl=generator)))
        wrap = partial(jax.random.wrap_key_data, impl=generator)
        self.key = jax.jit(wrap, out_shardings=replicated(self.mesh))(bits)

        apart = config.data.document_mask
        eot_id = document_separator(self.tokenizer) if apart else None
        attention, self._attention_reason = choose_attention(config.model, context, apart)
        self.model = dataclasses.replace(config.model, attention=attention)
        self._task = TASKS["lm"](self.model, train.loss_chunk_tokens, split, eot_id)
        self._specs = param_specs(parameter_shapes(self.model), split)
        self._schedule = learning_rate_schedule(config.optim, train.max_steps)
        self.optimizer = make_optimizer(
            config.optim, train.max_steps, dynamic_loss_scale=self.model.dtype == "float16"
        )
        self._compiled: dict[BatchLayout, jax.stages.Compiled] = {}
        self._weights: dict[tuple[int, ...], jax.Array] = {}
        self.layout, self._memory = self._lay_out()
        self.eval_step = make_eval_step(
            self._task,
            self.mesh,
            self._specs,
            matmul_precision(self.model, self.mesh.devices.flat[0]),
        )

        self.ramp = batch_ramp(config)
        self.source = StepSource(
            self.corpus.training_windows(),
            self.ramp,
            train.max_steps,
            train.seed,
            jax.process_index(),
            jax.process_count(),
        )
        self._val_windows = self.corpus.validation_windows()
        self._val_bytes = self._count_val_bytes() if train.eval_every_steps else []

    def _lay_out(self) -> tuple[BatchLayout, str | None]:
        """How an update is cut, and what was found about memory if the micro-batch is `auto`."""
        micro_batch, groups = self.config.train.micro_batch, row_groups(self.mesh)
        if micro_batch != "auto":
            return batch_layout(self.config, groups, micro_batch), None
        limit = memory_limit()
        if limit is None:
            raise UserError(
                "train.micro_batch auto needs to know how much memory a device has, which this one "
                "does not tell: give a number as --train.micro-batch"
            )
        limit = int(first_says(limit))  # all processes have to compile the same programs
        rows, needs = rows_per_device(self.config, groups), {}

        def needed(micro_batch: int) -> int:
            layout = batch_layout(self.config, groups, micro_batch)
            needs[micro_batch] = memory_needed(self._compile(layout))
            return needs[micro_batch]

        chosen = largest_micro_batch(rows, needed, limit)
        found = f"{gibibytes(needs[chosen])} of {gibibytes(limit)} a device, by the compiler"
        return batch_layout(self.config, groups, chosen), found

    def _compile(self, layout: BatchLayout) -> jax.stages.Compiled:
        """Compile the update of one layout, without data and without running anything."""
        if layout in self._compiled:
            return self._compiled[layout]
        model = self.model
        update = make_update(
            self._task,
            self.optimizer,
            self._schedule,
            self.mesh,
            self._specs,
            layout.micro_steps,
            dropout=any((model.embd_pdrop, model.attn_pdrop, model.resid_pdrop)),
            precision=matmul_precision(model, self.mesh.devices.flat[0]),
            wire_dtype=self.config.train.wire_dtype,
        )
        state, most = self.abstract_state(), self.config.train.updates_per_call
        places = jax.tree.map(lambda x: x.sharding, state)
        if most == 1:
            batch = abstract_batch(self.mesh, layout)
            lowered = make_train_step(update, places).lower(state, batch, self.key)
        else:
            batch = abstract_batch(self.mesh, layout, (most,))
            count = jax.ShapeDtypeStruct((), "int32", sharding=replicated(self.mesh))
            lowered = make_train_steps(update, places).lower(state, batch, self.key, count)
        self._compiled[layout] = lowered.compile(compiler_options())
        return self._compiled[layout]

    def compile_update(self, step: int) -> None:
        """Compile what the updates from `step` on, counted from 0, need and is not there yet."""
        for rows in self.ramp.sizes():
            if rows >= self.ramp.rows(step):
                self._compiled_for(rows)

    def _compiled_for(self, rows: int) -> jax.stages.Compiled:
        micro_steps = rows // (self.layout.micro_batch * self.layout.row_groups)
        return self._compile(dataclasses.replace(self.layout, micro_steps=micro_steps))

    def train_steps(self, state: TrainState, call: Call) -> tuple[TrainState, Metrics]:
        """The updates of one call, by the program for batches of their size; metrics are arrays."""
        micro_steps, rows = call.batch["tokens"].shape[-3:-1]
        compiled = self._compiled_for(micro_steps * rows)
        count = () if self.config.train.updates_per_call == 1 else (np.int32(call.updates),)
        return compiled(state, call.batch, self.key, *count)

    def adapted(self, state: TrainState) -> TrainState:
        """A restored state with the loss scale that the type of this start needs."""
        opt_state = with_loss_scale(state.opt_state, self.model.dtype == "float16")
        return state._replace(opt_state=opt_state)

    def evaluated_params(self, state: TrainState) -> Any:
        """The parameters to validate and sample with: their running average, if there is one."""
        averaged = averaged_parameters(state.opt_state)
        return state.params if averaged is None else averaged

    def data_identity(self, step: int) -> dict[str, str]:
        """What decides the data of the first `step` updates besides config; kept with checkpoints.

        Weights of a mixture that come into force later are left out, so that they may change.
        """
        return {"data": self.corpus.fingerprint_until(step), "grain": version("grain")}

    def abstract_state(self) -> TrainState:
        """Shapes and placement of the state, for restoring into."""
        return abstract_state(self.config.model, self.optimizer, self.mesh)

    def initial_state(self) -> TrainState:
        """Freshly drawn parameters, for a new run."""
        seed = self.config.train.seed
        return initial_state(self.config.model, self.optimizer, seed, self.mesh)

    def put_training_rows(self, rows: np.ndarray) -> Call:
        """Start copying the rows of one call's updates, [updates, R, T + 1], to the devices."""
        updates, most = len(rows), self.config.train.updates_per_call
        if most == 1:
            rows, axis = rows[0], 1
        else:
            filled, axis = np.zeros((most, *rows.shape[1:]), rows.dtype), 2
            filled[:updates] = rows
            rows = filled
        local_rows = self.layout.micro_batch * self.layout.row_groups // jax.process_count()
        batch = training_batch(rows, rows.shape[-2] // local_rows)
        weights = batch.pop("weights")  # the same for all updates of a size: copied once
        if weights.shape not in self._weights:
            self._weights[weights.shape] = put_rows(self.mesh, weights, axis)
        placed = put_rows(self.mesh, batch, axis)
        return Call({**placed, "weights": self._weights[weights.shape]}, updates)

    def validation_parts(self) -> list[ValidationPart]:
        """The fixed validation set of every source, with its batches on the devices."""
        return [
            ValidationPart(name, share, self._placed(windows), size)
            for name, share, windows, size in zip(
                self.corpus.names,
                self.corpus.shares(),
                self._val_windows,
                self._val_bytes,
                strict=True,
            )
        ]

    def _placed(self, windows: TokenWindows) -> Iterator[Any]:
        for batch in self._host_batches(windows, jax.process_index(), jax.process_count()):
            yield put_rows(self.mesh, batch, axis=0)

    def _host_batches(self, windows: TokenWindows, process: int, processes: int) -> Iterator[Any]:
        rows, limit = self.layout.micro_batch * self.layout.row_groups, None
        if self.config.train.eval_tokens is not None:
            limit = self.config.train.eval_tokens // len(self._val_windows)
        return validation_batches(windows, rows, limit, process, processes)

    def _count_val_bytes(self) -> list[int]:
        for windows in self._val_windows:
            if len(windows) == 0:
                tokens = windows.manifest.splits["val"].tokens
                raise UserError(
                    f"{windows.manifest.directory} has {tokens} validation tokens, fewer than "
                    f"one window of {self.config.context} + 1: prepare with a larger "
                    "--val-fraction, or train with --train.eval-every-steps 0"
                )
        lengths = bytes_per_token(self.tokenizer)
        return [target_bytes(self._host_batches(w, 0, 1), lengths) for w in self._val_windows]

    def announce(self, step: int, display: Display) -> None:
        """Say what is about to happen, so that a mistake is seen before it costs anything."""
        train, model, say = self.config.train, self.config.model, display.say
        device = jax.devices()[0]
        tokens = self.ramp.rows_before(train.max_steps) * self.config.context
        say(
            f"model    {parameter_count(model):,} parameters: {model.n_layer} layers, "
            f"{model.n_head} heads, {model.n_embd} wide, context {model.n_ctx}, vocabulary "
            f"{model.n_vocab:,} (padded to {model.padded_vocab:,}), {model.dtype}"
        )
        for line in self.corpus.lines(step):
            say(line)
        axes = " x ".join(f"{n} {axis}" for axis, n in self.mesh.shape.items() if n > 1)
        divided = f": {axes}" if axes else ""
        say(f"devices  {self.mesh.size} x {device.device_kind} ({device.platform}){divided}")
        inside = ", inside documents" if self.config.data.document_mask else ""
        say(f"attn     {self.model.attention}{inside} ({self._attention_reason})")
        say(f"batch    {self.layout}")
        if self._memory is not None:
            say(f"         (auto: the largest that fits: {self._memory})")
        elif self.layout.micro_batch < int(train.micro_batch):
            say(f"         (micro-batch lowered from {train.micro_batch} to fill every device)")
        if len(sizes := self.ramp.sizes()) > 1:
            tokens_of = ", ".join(f"{size * self.config.context:,}" for size in sizes)
            say(f"         (in steps over the first {train.ramp_steps:,} updates: {tokens_of})")
        say(
            f"updates  {step:,} to {train.max_steps:,}; {tokens:,} tokens in all, "
            f"{tokens / self.corpus.tokens:.2f} epochs"
        )
        rows = [
            (name, " x ".join(map(str, shape)), "yes" if decayed else "no")
            for name, shape, decayed in decay_table(parameter_shapes(model))
        ]
        decay = f"weight decay {self.config.optim.weight_decay}"
        display.table(decay, ("parameter", "shape", "decayed"), rows)
        if model.dtype == "bfloat16" and device.platform == "cpu":
            say("note     bfloat16 is slow on most processors: --model.dtype float32 may be faster")

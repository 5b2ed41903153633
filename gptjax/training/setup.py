"""Everything of a run that stays the same while it runs, built once and announced at its start."""

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gptjax.config import Config
from gptjax.data.loader import StepSource, require_vocabulary, training_batch, validation_batches
from gptjax.data.manifest import Manifest, read_manifest, read_tokenizer
from gptjax.data.tokenizers import Tokenizer, bytes_per_token
from gptjax.data.windows import TokenWindows
from gptjax.errors import UserError
from gptjax.evals.perplexity import target_bytes
from gptjax.model.gpt import parameter_count, parameter_shapes
from gptjax.training.display import Display
from gptjax.training.mesh import batch_layout, make_mesh, put_rows, replicated
from gptjax.training.optimizer import decay_table, learning_rate_schedule, make_optimizer
from gptjax.training.state import TrainState, abstract_state, initial_state
from gptjax.training.step import make_eval_step, make_train_step
from gptjax.training.tasks import TASKS


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
        self.manifest = read_manifest(Path(config.data.path))
        self.config = config = resolve(config, self.manifest)
        self.tokenizer: Tokenizer = read_tokenizer(self.manifest)
        self.layout = batch_layout(config, jax.device_count())
        self.mesh = make_mesh()
        self.placement = replicated(self.mesh)
        train, model = config.train, config.model

        row_loss = TASKS["lm"](model)
        schedule = learning_rate_schedule(config.optim, train.max_steps)
        self.optimizer = make_optimizer(config.optim, train.max_steps)
        self.train_step = make_train_step(
            row_loss,
            self.optimizer,
            schedule,
            self.mesh,
            self.layout.micro_steps,
            dropout=any((model.embd_pdrop, model.attn_pdrop, model.resid_pdrop)),
        )
        self.eval_step = make_eval_step(row_loss, self.mesh)
        self.key = jax.device_put(jax.random.key(train.seed), self.placement)

        self.source = StepSource(
            TokenWindows(self.manifest, "train", config.context),
            config.batch_rows,
            train.max_steps,
            train.seed,
            jax.process_index(),
            jax.process_count(),
        )
        self._val_windows = TokenWindows(self.manifest, "val", config.context)
        self.val_bytes = self._count_val_bytes() if train.eval_every_steps else 0

    @property
    def data_identity(self) -> dict[str, str]:
        """What decides the order of the data besides config and step; kept with checkpoints."""
        return {"data": self.manifest.fingerprint, "grain": version("grain")}

    def abstract_state(self) -> TrainState:
        """Shapes and placement of the state, for restoring into."""
        return abstract_state(self.config.model, self.optimizer, self.placement)

    def initial_state(self) -> TrainState:
        """Freshly drawn parameters, for a new run."""
        seed = self.config.train.seed
        return initial_state(self.config.model, self.optimizer, seed, self.placement)

    def put_training_rows(self, rows: Any) -> Any:
        """Start copying one update's rows to the devices."""
        return put_rows(self.mesh, training_batch(rows, self.layout.micro_steps), axis=1)

    def validation_batches(self) -> Iterator[Any]:
        """The fixed validation set on the devices, batch by batch."""
        for batch in self._host_batches(jax.process_index(), jax.process_count()):
            yield put_rows(self.mesh, batch, axis=0)

    def _host_batches(self, process: int, processes: int) -> Iterator[Any]:
        rows = self.layout.micro_batch * self.layout.n_devices
        limit = self.config.train.eval_tokens
        return validation_batches(self._val_windows, rows, limit, process, processes)

    def _count_val_bytes(self) -> int:
        if len(self._val_windows) == 0:
            tokens = self.manifest.splits["val"].tokens
            raise UserError(
                f"{self.manifest.directory} has {tokens} validation tokens, fewer than "
                f"one window of {self.config.context} + 1: prepare with a larger "
                "--val-fraction, or train with --train.eval-every-steps 0"
            )
        return target_bytes(self._host_batches(0, 1), bytes_per_token(self.tokenizer))

    def announce(self, step: int, display: Display) -> None:
        """Say what is about to happen, so that a mistake is seen before it costs anything."""
        train, model, say = self.config.train, self.config.model, display.say
        split, val = self.manifest.splits["train"], self.manifest.splits["val"]
        device, tokens = jax.devices()[0], train.batch_tokens * train.max_steps
        say(
            f"model    {parameter_count(model):,} parameters: {model.n_layer} layers, "
            f"{model.n_head} heads, {model.n_embd} wide, context {model.n_ctx}, vocabulary "
            f"{model.n_vocab:,} (padded to {model.padded_vocab:,}), {model.dtype}"
        )
        say(
            f"data     {self.manifest.directory}: {split.tokens:,} training tokens in "
            f"{len(split.shards)} shards, {val.tokens:,} for validation, tokenizer "
            f"{self.manifest.tokenizer}"
        )
        say(f"devices  {self.layout.n_devices} x {device.device_kind} ({device.platform})")
        say(f"batch    {self.layout}")
        if self.layout.micro_batch < train.micro_batch:
            say(f"         (micro-batch lowered from {train.micro_batch} to fill every device)")
        say(
            f"updates  {step:,} to {train.max_steps:,}; {tokens:,} tokens in all, "
            f"{tokens / split.tokens:.2f} epochs"
        )
        rows = [
            (name, " x ".join(map(str, shape)), "yes" if decayed else "no")
            for name, shape, decayed in decay_table(parameter_shapes(model))
        ]
        decay = f"weight decay {self.config.optim.weight_decay}"
        display.table(decay, ("parameter", "shape", "decayed"), rows)
        if model.dtype == "bfloat16" and device.platform == "cpu":
            say("note     bfloat16 is slow on most processors: --model.dtype float32 may be faster")

"""The parts of a run that never change while it runs, and the lines printed at its start.

Making a `Setup` opens the data and makes every check that needs no compiling. The attention that
works and the micro-batch that fits have to be tried or compiled, so they are found when they are
first needed, after the run's directory is locked.
"""

import dataclasses
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gptjax.base.errors import UserError
from gptjax.base.tree import count_bytes
from gptjax.cluster.mesh import BatchLayout, make_mesh, model_sharding, row_groups, rows_per_device
from gptjax.config import Config, ModelConfig
from gptjax.config.attention import masking_field
from gptjax.config.batches import batch_schedule
from gptjax.config.chunks import SMALLEST, loss_chunk
from gptjax.config.finetuning import from_scratch
from gptjax.config.run_batches import RunBatches
from gptjax.conversion.shapes import read_source
from gptjax.data.loader import StepSource, evenly_spread
from gptjax.evaluation.perplexity import ValidationPart
from gptjax.model.gpt import parameter_shapes
from gptjax.model.places import leaves
from gptjax.model.size import parameter_count
from gptjax.model.trainable import trainable, trained_count
from gptjax.runs.directory import RunDir
from gptjax.runs.display import Display
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import document_separator, fingerprint, make_tokenizer
from gptjax.training.autotune import choose_attention, choose_layout, gpu_memory
from gptjax.training.feed import Call, Feed, Shape, shape_of
from gptjax.training.guard import with_loss_scale
from gptjax.training.optimizer import averaged_parameters, decay_table
from gptjax.training.program import Program, assemble
from gptjax.training.safeguards import Safeguards
from gptjax.training.state import TrainState
from gptjax.training.step import Metrics
from gptjax.training.tasks import Given, task_of


class Setup:
    """Data, mesh, program and feed of one config. Raises `UserError` before any training.

    `run_dir` is where the run is, if it has begun: then its own tokenizer counts, and its examples.
    """

    def __init__(self, config: Config, run_dir: RunDir | None = None):
        self.task, self._begun = task_of(config), run_dir
        unfrozen = from_scratch(config) if config.train.init_from is None else config
        self._trains_all = unfrozen != config  # what was to be frozen is not there
        config = unfrozen
        self.data = self.task.examples(config, _given(config, run_dir))
        self._asked_tokenizer = None if self.task.reads_shards else config.data.tokenizer
        self.config = config = self.data.resolved(config)
        self.tokenizer, train = self.data.tokenizer, config.train
        # refuses names that the model does not have, before the run's directory is made
        self._chosen = trainable(
            config.model, config.optim.trainable, config.optim.trainable_layers
        )
        if train.sample_every_steps:
            self._require_prompt()  # fails now, not at the first sample
        split = model_sharding(config.mesh, jax.device_count(), jax.local_device_count())
        split.check(config.model)
        self.mesh = make_mesh(split=split)
        self.safeguards = Safeguards(train, self.mesh)
        rows_per_device(config, row_groups(self.mesh))
        self.schedule = batch_schedule(config)
        self.follow(RunBatches.of(self.schedule))
        if run_dir is None or not run_dir.has_checkpoint:
            self.data.refuse_excess()  # a run that resumes may have had other batches
        limit = train.eval_tokens
        self._most = None if limit is None else limit // max(1, len(self._sets)) // config.context
        self._set_bytes = [
            sum(
                self.data.target_bytes(s.examples[i]) for i in evenly_spread(s.examples, self._most)
            )
            for s in self._sets
        ]
        self._forms = {shape_of(form): form for form in self.data.forms()}
        self._compiled: dict[tuple[BatchLayout, Shape | None], jax.stages.Compiled] = {}

    def follow(self, batches: RunBatches) -> None:
        """Read the data as a run with these batches does; `StepSource` makes its checks."""
        train, processes = self.config.train, (jax.process_index(), jax.process_count())
        self.ramp, self.data = batches, self.data.along(batches)
        self.source = StepSource(self.data, batches, train.max_steps, train.seed, *processes)
        self._sets = self.data.validation_sets() if train.eval_every_steps else []

    def _require_prompt(self) -> None:
        prompt = self.config.sample.prompt
        try:
            self.tokenizer.encode(prompt)
        except UserError as error:
            message = f"sample.prompt {prompt!r} is not text of this data: {error}"
            raise UserError(message) from error

    @cached_property
    def _attention(self) -> tuple[str, str]:
        """The attention that works here, and the reason for it."""
        config, begun, kept = self.config, self._begun, None
        if begun is not None and begun.has_checkpoint:
            kept = begun.read_config().model.attention
        return choose_attention(config.model, config.context, masking_field(config), kept)

    @property
    def _model(self) -> ModelConfig:
        return dataclasses.replace(self.config.model, attention=self._attention[0])

    @property
    def recorded(self) -> Config:
        """The config to keep with the run: on a GPU with the attention that was timed there."""
        if jax.default_backend() == "cpu":
            return self.config
        return dataclasses.replace(self.config, model=self._model)

    @cached_property
    def program(self) -> Program:
        """The steps of this run, not compiled yet."""
        train = dataclasses.replace(
            self.config.train, loss_chunk_tokens=loss_chunk(self.config, gpu_memory())
        )
        eot_id = document_separator(self.tokenizer) if self.config.data.document_mask else 0
        config = dataclasses.replace(self.config, model=self._model, train=train)
        return assemble(config, self.mesh, eot_id)

    @cached_property
    def _layout(self) -> tuple[BatchLayout, str | None]:
        return choose_layout(self.config, row_groups(self.mesh), self._compile)

    @property
    def layout(self) -> BatchLayout:
        """The division of a batch; with micro-batch `auto`, compiling finds it."""
        return self._layout[0]

    @cached_property
    def feed(self) -> Feed:
        """The feed that carries batches to the devices."""
        return Feed(self.mesh, self.layout, self.config.train.updates_per_call)

    @cached_property
    def key(self) -> jax.Array:
        """The run's key, on every device."""
        return self.program.key()

    def _compile(self, layout: BatchLayout, shape: Shape | None = None) -> jax.stages.Compiled:
        """Compile the step of one layout, without data and without running anything.

        Examples have one of several shapes; without it they are like those of the program.
        """
        shape = shape if shape in self._forms else None
        if (layout, shape) not in self._compiled:
            form = None if shape is None else self._forms[shape]
            self._compiled[layout, shape] = self.program.compile(layout, form)
        return self._compiled[layout, shape]

    def _needed(self, step: int) -> list[tuple[BatchLayout, Shape | None]]:
        """The layout and the shape of each program for the steps from `step` on, from 0."""
        sizes = [rows for rows in self.ramp.sizes() if rows >= self.ramp.rows(step)]
        return [(self.layout.of_rows(n), form) for n in sizes for form in self._forms or [None]]

    def has_compiled(self, step: int) -> bool:
        """Whether the steps from `step` on have all of their programs."""
        return "key" in vars(self) and self._compiled.keys() >= set(self._needed(step))

    def compile_steps(self, step: int) -> None:
        """Compile all missing programs for the steps from `step` on, counted from 0."""
        _ = self.key  # making it compiles a small program
        for layout, shape in self._needed(step):
            self._compile(layout, shape)

    def train_steps(self, state: TrainState, call: Call) -> tuple[TrainState, Metrics]:
        """The steps of one call, by the program for batches of their size; metrics are arrays."""
        return self.steps_of(call)(state, call.batch, self.key, *call.count)

    def steps_of(self, call: Call) -> jax.stages.Compiled:
        """The program for the batches of a call."""
        return self._compile(call.layout, call.shape)

    def adapted(self, state: TrainState, cursor: dict[str, Any]) -> TrainState:
        """A restored state with the loss scale and the statistics that this start needs."""
        opt_state = with_loss_scale(state.opt_state, self.config.model.dtype == "float16")
        return self.safeguards.restored(state._replace(opt_state=opt_state), cursor)

    def evaluated_params(self, state: TrainState) -> Any:
        """The parameters to validate and sample with: their running average, if there is one."""
        averaged = averaged_parameters(state.opt_state)
        if averaged is None:
            return state.params
        return self.program.trained.updated(state.params, averaged)

    def data_identity(self, step: int) -> dict[str, str]:
        """Identify the data of the first `step` steps, beyond the config; kept with checkpoints.

        Mixture changes that take effect later are left out, so that they may still change.
        """
        return {"data": self.data.fingerprint_until(step), "grain": version("grain")}

    def validation_parts(self) -> list[ValidationPart]:
        """The fixed validation sets, with their batches on the devices."""
        return [
            ValidationPart(name, share, self.feed.validation(examples, self._most), size)
            for (name, share, examples), size in zip(self._sets, self._set_bytes, strict=True)
        ]

    def notes(self) -> list[str]:
        """A note if the config names another tokenizer than that of a run that has begun."""
        asked, own = self._asked_tokenizer, self.tokenizer
        if asked in (None, own.name) or (asked.endswith(".json") and _is_file_of(asked, own)):
            return []
        return [
            f"note     no effect here: --data.tokenizer {asked} (the run goes on with its own, "
            f"{own.name}; --fresh starts over)"
        ]

    def announce(self, step: int, display: Display) -> None:
        """Print the plan of the run, so that a mistake is seen before it costs anything."""
        train, model, say = self.config.train, self.config.model, display.say
        device = jax.devices()[0]
        tokens = self.ramp.rows_before(train.max_steps) * self.config.context
        say(
            f"model    {parameter_count(model):,} parameters: {model.n_layer} layers, "
            f"{model.n_head} heads, {model.n_embd} wide, context {model.n_ctx}, vocabulary "
            f"{model.n_vocab:,} (padded to {model.padded_vocab:,}), {model.dtype}"
        )
        for line in self.data.announcement(step):
            say(line)
        axes = " x ".join(f"{n} {axis}" for axis, n in self.mesh.shape.items() if n > 1)
        divided = f": {axes}" if axes else ""
        say(f"devices  {self.mesh.size} x {device.device_kind} ({device.platform}){divided}")
        attention, reason = self._attention
        inside = "" if masking_field(self.config) is None else ", inside documents"
        say(f"attn     {attention}{inside} ({reason})")
        chunk = int(self.program.config.train.loss_chunk_tokens)
        chosen = train.loss_chunk_tokens == "auto" and chunk > SMALLEST
        say(f"batch    {self.layout}{f', loss by {chunk:,} tokens' if chosen else ''}")
        if (memory := self._layout[1]) is not None:
            say(f"         (auto: the largest that fits: {memory})")
        elif self.layout.micro_batch < int(train.micro_batch):
            say(f"         (micro-batch lowered from {train.micro_batch} to fill every device)")
        if len(sizes := self.ramp.sizes()) > 1:
            tokens_of = ", ".join(f"{size * self.config.context:,}" for size in sizes)
            say(
                f"         (grows in stages over the first {train.ramp_steps:,} steps: {tokens_of})"
            )
        in_all = "" if train.batch_rows else f"{tokens:,} tokens in all, "
        say(
            f"steps    {step:,} to {train.max_steps:,}; {in_all}"
            f"{self.data.epochs(train.max_steps):.2f} epochs"
        )
        self._announce_parameters(display)
        if model.dtype == "bfloat16" and device.platform == "cpu":
            say("note     bfloat16 is slow on most CPUs: --model.dtype float32 may be faster")

    def _announce_parameters(self, display: Display) -> None:
        """What of the model is trained, and what decays."""
        model, optim, chosen = self.config.model, self.config.optim, self._chosen
        state = count_bytes(self.program.abstract_state().opt_state)
        display.say(
            f"trained  {trained_count(model, chosen):,} of {parameter_count(model):,} parameters, "
            f"optimizer {state / 2**20:,.1f} MiB"
        )
        if self._trains_all:
            display.say(
                "         (all of them: nothing is frozen and there are no adapters without "
                "--train.init-from)"
            )
        by_name = {leaf.name: leaf for leaf in leaves(model)}
        rows = [
            (
                name,
                " x ".join(map(str, shape)),
                chosen.in_words(by_name[name]),
                "yes" if decayed and name in chosen.names else "no",
            )
            for name, shape, decayed in decay_table(parameter_shapes(model))
        ]
        decay = f"weight decay {optim.weight_decay}"
        display.table(decay, ("parameter", "shape", "trained", "decayed"), rows)


def _is_file_of(name: str, tokenizer: Tokenizer) -> bool:
    """Whether a file has this tokenizer, as far as it is still there."""
    return not Path(name).is_file() or fingerprint(make_tokenizer(name)) == fingerprint(tokenizer)


def _given(config: Config, run_dir: RunDir | None) -> Given:
    """The tokenizer that examples must have, and where they are kept."""
    if task_of(config).reads_shards:
        return Given()
    if run_dir is not None and run_dir.has_checkpoint:
        return Given(run_dir.read_tokenizer(), run_dir.path)
    if config.train.init_from is None:
        return Given()
    return Given(read_source(config.train.init_from).tokenizer)

"""Batch, length, cadence and safety of a run."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Batch, length and cadence of a run. A step is one update of the parameters."""

    batch_tokens: int = 2**19
    """Tokens per step over all devices and micro-steps."""
    batch_rows: int | None = None
    """Examples per step of a fine-tuning, in place of batch_tokens."""
    micro_batch: int | Literal["auto"] = 16
    """Most sequences that a device processes at once; the number of micro-steps follows from it.
    auto takes the largest number that the compiler reports will fit in memory."""
    cpu_devices: int = 1
    """Devices into which a CPU is divided; one a core is faster for small models. GPUs ignore
    it."""
    ramp_from_tokens: int | None = None
    """Tokens per step at the start of a ramp, batch_tokens divided by a power of two; None does not
    ramp."""
    ramp_steps: int = 0
    """Steps in which the batch doubles, in equal stages, until it has batch_tokens."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients cross the network between groups of devices, once per step."""
    updates_per_call: int = 1
    """Most steps that one call of the compiled program takes: ten save a tenth of the time if a
    step takes about ten milliseconds. Their rows of metrics.jsonl share one time, and a stop
    request waits for the one or two calls in progress."""
    loss_chunk_tokens: int | Literal["auto"] = "auto"
    """Tokens whose logits exist at once in training; 0 computes all logits of a micro-batch. auto
    is 2048, or up to 8192 on GPUs with the memory for it."""
    context: int | None = None
    """Tokens in a training window (T); None means model.n_ctx."""
    max_steps: int = 19073
    """Steps in the whole run; with epochs, the most."""
    epochs: float | None = None
    """Epochs over the examples of a fine-tuning, which then decide the number of steps."""
    eval_every_epochs: float | None = None
    """Epochs between validations, each with a save, in place of eval_every_steps and
    save_every_steps."""
    best_by: Literal["loss", "accuracy", "macro_f1"] = "loss"
    """Validation measure of the best checkpoint, and of patience; accuracy and macro_f1 are for
    classification. Of equal values the one with the lower validation loss is better."""
    patience: int | None = None
    """Validations without a better value of best_by after which a fine-tuning ends; None never ends
    early."""
    eval_every_steps: int = 250
    """Steps between validation losses; 0 never evaluates."""
    eval_tokens: int | None = 2**20
    """Most validation tokens per evaluation; None uses the whole validation set."""
    save_every_steps: int = 500
    """Steps between checkpoints; 0 saves by the clock, and at the end."""
    save_every_minutes: float = 10.0
    """Most minutes between two checkpoints, whatever their steps; 0 saves by steps alone."""
    keep_latest: int = 2
    """Number of newest checkpoints to keep; the best one by best_by is kept too."""
    keep_every_steps: int = 0
    """Steps between milestones, checkpoints that are never deleted; 0 keeps none."""
    checkpoint_dir: str | None = None
    """Object store to which every checkpoint is copied, and from which another machine goes on:
    s3://BUCKET/PATH, gs://BUCKET/PATH, or a directory of another disk."""
    sample_every_steps: int = 1000
    """Steps between sampled texts; 0 never samples."""
    stall_seconds: int = 600
    """Seconds without a finished step after which a process that hangs ends, to be started again.
    Ten times the longest wait so far is allowed too, a save may take three times as long, and a
    compilation, a restore, and the first of everything six times; 0 waits for ever."""
    preflight: Literal["on", "off"] = "on"
    """Try everything that the run will do (step, validation, sample, checkpoint, disk, links) once
    before its first step."""
    deterministic: bool = False
    """Let a GPU compute the same bits in every run, with slower kernels; a CPU always does."""
    skip_zscore: float | None = None
    """Skip a step whose loss is so many standard deviations above the mean of the last steps; None
    skips none."""
    rollback_zscore: float | None = None
    """Go back to a checkpoint before a spike and pass over its data, if the loss stays so many
    standard deviations above its mean; None never goes back."""
    price: float | None = None
    """Price of one GPU for one hour, for the account of the run; None counts hours alone."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get every row of metrics.jsonl; each is an extra to install."""
    seed: int = 1337
    """Seed of initialisation, dropout and data order."""
    init_from: str | None = None
    """Model to start from, with a new optimizer: RUN, RUN@best, RUN@latest, RUN@STEP, or a Hugging
    Face directory. Shape and tokenizer come from there; None draws new parameters."""
    evaluate_on: tuple[str, ...] = ()
    """Published tests to measure during the run, each NAME=FILE: perplexity, wikitext, hellaswag,
    lambada or choices."""
    evaluate_on_every_steps: int = 0
    """Steps between measurements of evaluate_on; 0 measures with every validation loss, and once at
    the end."""
    evaluate_on_limit: int | None = None
    """Most items of each file of evaluate_on; None measures all of them."""
    profile: str | None = None
    """STEP:COUNT writes a trace of COUNT steps after step STEP into the run's directory."""

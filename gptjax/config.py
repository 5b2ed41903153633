"""What a run is: frozen dataclasses, checked as a whole, written to and read from JSON.

A file in `configs/` returns a `Config`; the command line overrides single fields. Field names are
OpenAI's and Hugging Face's where they exist; every count carries its unit. Nothing here imports
jax, so `--help` is instant.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from gptjax.errors import ConfigError, did_you_mean

VOCAB_MULTIPLE = 128  # rows of the embedding table are padded to whole tensor-core tiles


@dataclass(frozen=True)
class ModelConfig:
    """The network: its shape and its switches. GPT-1 and GPT-2 differ in these fields only."""

    n_layer: int = 12
    """Transformer blocks (N)."""
    n_head: int = 12
    """Attention heads in a block (H); must divide n_embd."""
    n_embd: int = 768
    """Width of the residual stream (D)."""
    n_ctx: int = 1024
    """Longest context the position table holds, in tokens."""
    n_vocab: int | None = None
    """Vocabulary size (V), in tokens; None takes it from the prepared data's tokenizer."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each sub-layer (GPT-2) or after each residual sum (GPT-1)."""
    final_norm: bool = True
    """Layer norm after the last block (GPT-2: yes, GPT-1: no)."""
    scale_residual_init: bool = True
    """Divide the initial scale of residual projections by sqrt(2 N) (GPT-2: yes, GPT-1: no)."""
    qkv_bias: bool = True
    """Bias of the query, key and value projection."""
    bias: bool = True
    """Bias of every other projection and of the layer norms."""
    tied_head: bool = True
    """Read logits with the token embedding itself instead of a second matrix."""
    embd_pdrop: float = 0.0
    """Dropout probability after the sum of token and position embedding."""
    attn_pdrop: float = 0.0
    """Dropout probability of attention weights."""
    resid_pdrop: float = 0.0
    """Dropout probability of each sub-layer's output."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and matrix products; parameters, norms, softmax and loss stay float32."""
    unroll: int = 1
    """Layers per iteration of the loop over the stack: 1 compiles fastest, n_layer runs fastest."""

    @property
    def head_dim(self) -> int:
        """Width of one head (K)."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab(self) -> int:
        """Rows of the token embedding: n_vocab rounded up to a multiple of 128."""
        if self.n_vocab is None:
            raise ValueError("n_vocab is not known yet: it comes from the prepared data")
        return math.ceil(self.n_vocab / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class DataConfig:
    """Where tokens come from and how they were, or are to be, prepared."""

    path: str = "data/quickstart"
    """Directory of prepared token shards, with their manifest."""
    tokenizer: str | None = None
    """gpt2, bytes, or bpe:N (a BPE of N tokens trained on the corpus); None: whatever `path` has
    (and bytes when preparing)."""
    source: Literal["stdlib"] | None = None
    """Corpus that is on every machine: stdlib is Python's own standard library."""
    inputs: tuple[str, ...] = ()
    """UTF-8 text files to prepare, one document each."""
    val_fraction: float = 0.05
    """Share of the text held out for validation, chosen by document hash (0 to 0.5)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with global-norm clipping, decoupled masked decay and a warmup-cosine schedule."""

    peak_lr: float = 6e-4
    """Learning rate at the end of the warm-up."""
    final_lr: float = 6e-5
    """Learning rate at the end of the cosine."""
    warmup_steps: int = 700
    """Linear warm-up, in updates."""
    decay_steps: int | None = None
    """Update at which the cosine ends, warm-up included; None means train.max_steps."""
    weight_decay: float = 0.1
    """Decoupled decay per unit of learning rate; biases and norms are never decayed."""
    beta1: float = 0.9
    """Decay of Adam's first moment, per update."""
    beta2: float = 0.95
    """Decay of Adam's second moment, per update."""
    eps: float = 1e-8
    """Adam's epsilon, added to the root of the second moment."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None does not clip."""


@dataclass(frozen=True)
class TrainConfig:
    """Batch, length and cadence of a run. A step is one optimizer update everywhere."""

    batch_tokens: int = 2**19
    """Tokens per update over all devices and micro-steps."""
    micro_batch: int = 16
    """Sequences a device holds at once, at most; the number of micro-steps follows from it."""
    context: int | None = None
    """Tokens in a training window (T); None means model.n_ctx."""
    max_steps: int = 19073
    """Updates in the whole run."""
    eval_every_steps: int = 250
    """Updates between validation losses; 0 never evaluates."""
    eval_tokens: int | None = 2**20
    """Validation tokens per evaluation, at most; None uses the whole validation set."""
    save_every_steps: int = 500
    """Updates between checkpoints; 0 saves only at the end."""
    keep_latest: int = 2
    """Newest checkpoints kept, in number; the best by validation loss is kept besides."""
    sample_every_steps: int = 1000
    """Updates between sampled texts; 0 never samples."""
    seed: int = 1337
    """Seed of initialisation, dropout and data order."""


@dataclass(frozen=True)
class SampleConfig:
    """The text written to samples.md while training."""

    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = 96
    """Length of a sample, in tokens."""
    temperature: float = 0.8
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: int | None = 50
    """Candidates per token, in number; None keeps the whole vocabulary."""


@dataclass(frozen=True)
class Config:
    """A whole run; with the step, the parameters and the optimizer state there is nothing else."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def context(self) -> int:
        """Tokens in a training window (T)."""
        return self.model.n_ctx if self.train.context is None else self.train.context

    @property
    def batch_rows(self) -> int:
        """Training windows per update."""
        return self.train.batch_tokens // self.context


def validate(config: Config) -> None:
    """Check types, ranges and combinations; raise one `ConfigError` that lists every problem."""
    problems = list(_wrong_types(config))
    if not problems:
        problems = [message for bad, message in _rules(config) if bad]
    if problems:
        raise ConfigError(problems)


def _rules(c: Config) -> list[tuple[bool, str]]:
    """Each rule as (is it broken, what to say): what was expected, what came, what to do."""
    m, d, o, t, s = c.model, c.data, c.optim, c.train, c.sample
    at_least_one = {
        "model.n_layer": m.n_layer, "model.n_head": m.n_head, "model.n_embd": m.n_embd,
        "model.n_ctx": m.n_ctx, "model.unroll": m.unroll, "train.batch_tokens": t.batch_tokens,
        "train.micro_batch": t.micro_batch, "train.max_steps": t.max_steps,
        "train.keep_latest": t.keep_latest, "sample.max_new_tokens": s.max_new_tokens,
        "model.n_vocab": m.n_vocab, "train.context": t.context, "train.eval_tokens": t.eval_tokens,
        "optim.decay_steps": o.decay_steps, "sample.top_k": s.top_k,
    }  # fmt: skip
    not_negative = {
        "optim.warmup_steps": o.warmup_steps, "optim.peak_lr": o.peak_lr,
        "optim.final_lr": o.final_lr, "optim.weight_decay": o.weight_decay,
        "train.eval_every_steps": t.eval_every_steps, "train.save_every_steps": t.save_every_steps,
        "train.sample_every_steps": t.sample_every_steps, "train.seed": t.seed,
        "sample.temperature": s.temperature,
    }  # fmt: skip
    probabilities = {
        "model.embd_pdrop": m.embd_pdrop, "model.attn_pdrop": m.attn_pdrop,
        "model.resid_pdrop": m.resid_pdrop, "optim.beta1": o.beta1, "optim.beta2": o.beta2,
    }  # fmt: skip
    rules = [(v is not None and v < 1, f"{k} must be at least 1, not {v}")
             for k, v in at_least_one.items()]  # fmt: skip
    rules += [(not v >= 0, f"{k} must be 0 or more, not {v}") for k, v in not_negative.items()]
    rules += [(not 0 <= v < 1, f"{k} must be in [0, 1), not {v}") for k, v in probabilities.items()]
    rules += [
        (not 0 <= d.val_fraction <= 0.5,
         f"data.val_fraction must be in [0, 0.5], not {d.val_fraction}"),
        (not o.eps > 0, f"optim.eps must be above 0, not {o.eps}"),
        (o.clip_norm is not None and not o.clip_norm > 0,
         f"optim.clip_norm must be above 0, not {o.clip_norm} (None does not clip)"),
        (d.tokenizer is not None and not is_tokenizer_name(d.tokenizer),
         f"data.tokenizer must be gpt2, bytes or bpe:N with N of 257 or more, not {d.tokenizer!r}"
         + did_you_mean(str(d.tokenizer), ["gpt2", "bytes", "bpe:4096"])),
        (t.seed >= 2**32, f"train.seed must be below 2**32, not {t.seed}"),
    ]  # fmt: skip
    if any(bad for bad, _ in rules):
        return rules  # the combinations below divide by these numbers
    row, micro_tokens = c.context, c.context * t.micro_batch
    near = max(1, round(t.batch_tokens / micro_tokens)) * micro_tokens
    return [
        *rules,
        (m.n_embd % m.n_head != 0,
         f"model.n_embd {m.n_embd} is not divisible by model.n_head {m.n_head}: every head needs "
         "the same width"),
        (row > m.n_ctx,
         f"train.context {row} is longer than the model's model.n_ctx {m.n_ctx}"),
        (t.batch_tokens % micro_tokens != 0,
         f"train.batch_tokens {t.batch_tokens} is not divisible by context x train.micro_batch = "
         f"{row} x {t.micro_batch} = {micro_tokens}: try {near}"),
        (o.decay_steps is not None and o.warmup_steps > o.decay_steps,
         f"optim.warmup_steps {o.warmup_steps} is longer than the whole schedule, "
         f"optim.decay_steps {o.decay_steps}"),
    ]  # fmt: skip


def is_tokenizer_name(name: str) -> bool:
    """Whether `name` is one that `gptjax.data.tokenizers` can make: gpt2, bytes or bpe:N."""
    kind, _, size = name.partition(":")
    return name in ("gpt2", "bytes") or (kind == "bpe" and size.isdigit() and int(size) >= 257)


def _wrong_types(section: Any, prefix: str = "") -> list[str]:
    """Name every field whose value does not have the declared type."""
    hints = typing.get_type_hints(type(section))
    problems = []
    for f in dataclasses.fields(section):
        value, expected = getattr(section, f.name), hints[f.name]
        if dataclasses.is_dataclass(expected):
            if isinstance(value, typing.cast(type, expected)):
                problems += _wrong_types(value, f"{prefix}{f.name}.")
                continue
        elif _fits(value, expected):
            continue
        problems.append(f"{prefix}{f.name} must be {type_name(expected)}, not {value!r}")
    return problems


def _fits(value: Any, expected: Any) -> bool:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def type_name(expected: Any) -> str:
    """Say a field's type as a person would: `int or None`, `one of pre, post`."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is tuple:
        return f"a list of {type_name(args[0])}"
    return "None" if expected is type(None) else expected.__name__


def to_json(config: Config) -> str:
    """Write a config as indented JSON, section by section."""
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    return json.dumps({k: dataclasses.asdict(v) for k, v in sections.items()}, indent=2) + "\n"


def from_json(text: str, name: str) -> Config:
    """Read what `to_json` wrote; `name` is the file, for messages. Raises `ConfigError`."""
    try:
        raw = json.loads(text)
        config = Config(**{k: _section(k, v) for k, v in raw.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError([f"{name} is not a config that this version wrote: {error}"]) from error
    validate(config)
    return config


def _section(name: str, values: dict[str, Any]) -> Any:
    kind = typing.get_type_hints(Config)[name]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

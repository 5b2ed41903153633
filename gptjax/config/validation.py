"""Every mistake in a config at once: types first, then ranges, then combinations.

A check that involves a field already found wrong is skipped; every other check runs. A config that
is read back from JSON is checked here too.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.config.attention import cudnn_limits, masking_field
from gptjax.config.courses import misfits
from gptjax.config.field_types import misfits_of_type
from gptjax.config.finetuning import finetuning_mistakes
from gptjax.config.names import (
    HUB_FORM,
    TOKENIZERS,
    evaluation_mistakes,
    is_tokenizer_name,
    mistakes,
    profile_window,
    read_hub_name,
)
from gptjax.config.sampling import sampling_mistakes
from gptjax.config.schema import Config, SampleConfig

MOST_UPDATES_PER_CALL = 1000  # a stop request waits for the call under way


class Problem(NamedTuple):
    """A broken rule: its fields, and the message for the user."""

    fields: tuple[str, ...]
    message: str


def validate(config: Config) -> None:
    """Raise one `ConfigError` that lists every problem, if there is any."""
    if problems := find_problems(config):
        raise ConfigError([problem.message for problem in problems])


def config_from_json(text: str, name: str) -> Config:
    """Read and check JSON of `gptjax.config.schema.to_json`; `name` is the file, for messages.

    A field that an earlier version did not know has its default. Raises `ConfigError` with every
    problem.
    """
    try:
        raw = json.loads(text)
        if unknown := set(raw) - {f.name for f in dataclasses.fields(Config)}:
            raise ValueError(f"it has the unknown section {', '.join(sorted(map(str, unknown)))}")
        if "model" not in raw:
            raise ValueError("it has no section model")
        config = Config(**{k: _section(k, v) for k, v in raw.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError([f"{name} is not a config that this version wrote: {error}"]) from error
    if problems := find_problems(config, is_new=False):
        raise ConfigError([f"{name}: {problem.message}" for problem in problems])
    return config


def _section(name: str, values: Any) -> Any:
    kind: Any = typing.get_type_hints(Config)[name]
    if not isinstance(values, dict):
        return values  # a field of the config itself, or a mistake that is found next
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def find_problems(config: Config, is_new: bool = True) -> list[Problem]:
    """Every problem of types, ranges and combinations; for a new run, also of its schedules."""
    problems = [Problem((name,), message) for name, message in misfits_of_type(config)]
    for rules in (_ranges, _combinations, _course) if is_new else (_ranges, _combinations):
        broken = {name for problem in problems for name in problem.fields}
        sections = {name.split(".")[0] for name in broken if "." not in name}
        problems += [
            problem
            for problem in rules(_mended(config, broken))
            if not any(f in broken or f.split(".")[0] in sections for f in problem.fields)
        ]
    return problems


def sample_problems(sample: SampleConfig) -> list[tuple[str, str]]:
    """Every broken rule of a sample, in the order of its fields: the field, and its rule."""
    found = dict(p.message.removeprefix("sample.").split(" ", 1)
                 for p in find_problems(Config(sample=sample)))  # fmt: skip
    return [(f.name, found[f.name]) for f in dataclasses.fields(sample) if f.name in found]


def _mended(config: Config, broken: set[str]) -> Config:
    """The config with defaults in place of broken fields, so that the rest can be checked."""
    values = {}
    for f in dataclasses.fields(Config):
        value = getattr(Config() if f.name in broken else config, f.name)
        if names := [n.split(".")[1] for n in broken if n.startswith(f.name + ".")]:
            default = type(value)()
            value = dataclasses.replace(value, **{n: getattr(default, n) for n in names})
        values[f.name] = value
    return Config(**values)


def _ranges(c: Config) -> Iterator[Problem]:
    """Rules about one field: the expected and the given value."""
    m, d, o, t = c.model, c.data, c.optim, c.train
    at_least_one = {
        "model.n_layer": m.n_layer, "model.n_head": m.n_head, "model.n_embd": m.n_embd,
        "model.n_ctx": m.n_ctx, "model.unroll": m.unroll, "train.batch_tokens": t.batch_tokens,
        "train.micro_batch": None if t.micro_batch == "auto" else t.micro_batch,
        "train.max_steps": t.max_steps, "train.ramp_from_tokens": t.ramp_from_tokens,
        "train.keep_latest": t.keep_latest, "train.eval_tokens": t.eval_tokens,
        "model.n_vocab": m.n_vocab, "train.context": t.context,
        "optim.decay_steps": o.decay_steps, "train.cpu_devices": t.cpu_devices,
        "train.evaluate_on_limit": t.evaluate_on_limit, "mesh.data": c.mesh.data,
        "mesh.fsdp": c.mesh.fsdp, "mesh.tensor": c.mesh.tensor,
    }  # fmt: skip
    not_negative = {
        "optim.warmup_steps": o.warmup_steps, "optim.peak_lr": o.peak_lr,
        "optim.final_lr": o.final_lr, "optim.weight_decay": o.weight_decay,
        "train.eval_every_steps": t.eval_every_steps, "train.save_every_steps": t.save_every_steps,
        "train.sample_every_steps": t.sample_every_steps, "train.seed": t.seed,
        "train.loss_chunk_tokens": 0 if t.loss_chunk_tokens == "auto" else t.loss_chunk_tokens,
        "train.ramp_steps": t.ramp_steps, "train.stall_seconds": t.stall_seconds,
        "train.evaluate_on_every_steps": t.evaluate_on_every_steps,
        "train.save_every_minutes": t.save_every_minutes,
        "train.keep_every_steps": t.keep_every_steps, "train.price": t.price or 0,
    }  # fmt: skip
    probabilities = {
        "model.embd_pdrop": m.embd_pdrop, "model.attn_pdrop": m.attn_pdrop,
        "model.resid_pdrop": m.resid_pdrop, "optim.beta1": o.beta1, "optim.beta2": o.beta2,
        "optim.muon_momentum": o.muon_momentum,
    }  # fmt: skip
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            yield Problem((name,), f"{name} must be at least 1, not {value}")
    for name, rule in sampling_mistakes(c.sample):
        yield Problem((f"sample.{name}",), f"sample.{name} {rule}")
    for name, value in not_negative.items():
        if not 0 <= value < float("inf"):
            yield Problem((name,), f"{name} must be 0 or more, not {value}")
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            yield Problem((name,), f"{name} must be in [0, 1), not {value}")
    if not 1 <= (n := t.updates_per_call) <= MOST_UPDATES_PER_CALL:
        message = f"train.updates_per_call must be 1 to {MOST_UPDATES_PER_CALL}, not {n}"
        yield Problem(("train.updates_per_call",), message)
    if not 0 <= d.val_fraction <= 0.5:
        message = f"data.val_fraction must be in [0, 0.5], not {d.val_fraction}"
        yield Problem(("data.val_fraction",), message)
    if not o.eps > 0:
        yield Problem(("optim.eps",), f"optim.eps must be above 0, not {o.eps}")
    if o.clip_norm is not None and not o.clip_norm > 0:
        message = f"optim.clip_norm must be above 0, not {o.clip_norm} (None does not clip)"
        yield Problem(("optim.clip_norm",), message)
    if not 0 <= o.cooldown_fraction <= 1:
        message = f"optim.cooldown_fraction must be in [0, 1], not {o.cooldown_fraction}"
        yield Problem(("optim.cooldown_fraction",), message)
    if any(step < 1 for step in o.rewarm_steps):
        message = f"optim.rewarm_steps must be at least 1, not {min(o.rewarm_steps)}"
        yield Problem(("optim.rewarm_steps",), message)
    if o.ema_decay is not None and not 0 <= o.ema_decay < 1:
        message = f"optim.ema_decay must be in [0, 1), not {o.ema_decay} (None keeps no average)"
        yield Problem(("optim.ema_decay",), message)
    if t.profile is not None and profile_window(t.profile) is None:
        message = f"train.profile must be STEP:COUNT with a COUNT of 1 or more, not {t.profile!r}"
        yield Problem(("train.profile",), message)
    for name, value in (("skip", t.skip_zscore), ("rollback", t.rollback_zscore)):
        if value is not None and not value > 0:
            message = f"train.{name}_zscore must be above 0, not {value} (None never does it)"
            yield Problem((f"train.{name}_zscore",), message)
    for message in evaluation_mistakes(t.evaluate_on):
        yield Problem(("train.evaluate_on",), f"train.evaluate_on {message}")
    if d.tokenizer is not None and not is_tokenizer_name(d.tokenizer):
        near = did_you_mean(d.tokenizer, [*TOKENIZERS, "bpe:4096", "tiktoken:cl100k_base"])
        message = (
            f"data.tokenizer must be {', '.join(TOKENIZERS)}, bpe:N with N of 257 or more, "
            "tiktoken:ENCODING or the path of a .json file"
        )
        yield Problem(("data.tokenizer",), f"{message}, not {d.tokenizer!r}{near}")
    if d.hub is not None and read_hub_name(d.hub) is None:
        yield Problem(("data.hub",), f"data.hub must be {HUB_FORM}, not {d.hub!r}")
    if t.seed >= 2**32:
        yield Problem(("train.seed",), f"train.seed must be below 2**32, not {t.seed}")


def _combinations(c: Config) -> Iterator[Problem]:
    """Rules about several fields: which of them conflict, and how to resolve it."""
    m, o = c.model, c.optim
    if m.n_embd % m.n_head:
        yield Problem(
            ("model.n_embd", "model.n_head"),
            f"model.n_embd {m.n_embd} is not divisible by model.n_head {m.n_head}: every head "
            "needs the same width",
        )
    if c.context > m.n_ctx:
        yield Problem(
            ("train.context", "model.n_ctx"),
            f"train.context {c.context} is longer than the model's model.n_ctx {m.n_ctx}",
        )
    yield from _batch(c)
    for name, message in mistakes(c.data.mixture, c.data.mixture_changes):
        yield Problem((f"data.{name}",), f"data.{name} {message}")
    if o.moments_dtype == "bfloat16" and o.name == "adafactor":
        yield Problem(
            ("optim.moments_dtype", "optim.name"),
            "optim.moments_dtype bfloat16 does not work with optim.name adafactor, whose small "
            "statistics would never change: leave it at float32",
        )
    elif o.moments_dtype == "bfloat16" and max(o.beta1, o.beta2) > 1 - 2**-8:
        yield Problem(
            ("optim.moments_dtype", "optim.beta1", "optim.beta2"),
            f"optim.moments_dtype bfloat16 has 8 bits, too few for moments with betas of {o.beta1} "
            f"and {o.beta2}, which would never change: take betas below 0.996, or float32",
        )
    if m.remat != "none" and m.unroll >= m.n_layer > 1:
        yield Problem(
            ("model.remat", "model.unroll", "model.n_layer"),
            f"model.remat {m.remat} saves nothing if model.unroll {m.unroll} leaves no loop "
            f"over the {m.n_layer} layers: take model.unroll 1, or model.remat none",
        )
    for name, reason in cudnn_limits(m, masking_field(c)) if m.attention == "cudnn" else ():
        yield Problem(
            ("model.attention", name),
            f"model.attention cudnn {reason}: take model.attention pallas or auto, or change "
            f"{name}",
        )


def _course(c: Config) -> Iterator[Problem]:
    """Rules about the lengths of schedules and ramps, and about fine-tuning."""
    return (Problem(*found) for found in chain(misfits(c), finetuning_mistakes(c)))


def _batch(c: Config) -> Iterator[Problem]:
    """Rules about the batch, the micro-batch and the ramp."""
    t = c.train
    micro_tokens = c.context * (1 if t.micro_batch == "auto" else t.micro_batch)
    if t.batch_rows is None and t.batch_tokens % micro_tokens:
        near = max(1, round(t.batch_tokens / micro_tokens)) * micro_tokens
        yield Problem(
            ("train.batch_tokens", "train.micro_batch", "train.context", "model.n_ctx"),
            f"train.batch_tokens {t.batch_tokens} is not divisible by context x train.micro_batch "
            f"= {c.context} x {t.micro_batch} = {micro_tokens}: try {near}",
        )
    if (t.ramp_from_tokens is None) != (t.ramp_steps == 0):
        yield Problem(
            ("train.ramp_from_tokens", "train.ramp_steps"),
            "train.ramp_from_tokens and train.ramp_steps go together (the first batch, and the "
            f"steps until the full batch), not {t.ramp_from_tokens} and {t.ramp_steps}",
        )
    elif t.ramp_from_tokens is not None:
        ratio, rest = divmod(t.batch_tokens, t.ramp_from_tokens)
        if rest or ratio < 2 or ratio & (ratio - 1):
            yield Problem(
                ("train.ramp_from_tokens", "train.batch_tokens"),
                f"train.ramp_from_tokens {t.ramp_from_tokens} must be train.batch_tokens "
                f"{t.batch_tokens} divided by 2, 4, 8, ...",
            )
        elif t.ramp_from_tokens % micro_tokens:
            yield Problem(
                ("train.ramp_from_tokens", "train.micro_batch", "train.context", "model.n_ctx"),
                f"train.ramp_from_tokens {t.ramp_from_tokens} is not divisible by context x "
                f"train.micro_batch = {micro_tokens}: take a smaller micro-batch or a larger start",
            )

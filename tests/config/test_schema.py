"""A config reports all its mistakes at once, and survives a round trip through JSON."""

import dataclasses
import json
import typing
from typing import Any

import pytest

from gptjax.base.errors import ConfigError
from gptjax.config import Config, DataConfig, ModelConfig, TrainConfig, to_json
from gptjax.config.field_types import type_name
from gptjax.config.names import profile_window
from gptjax.config.presets import load_config, preset_names
from gptjax.config.validation import config_from_json, find_problems, validate

FIELDS = {
    f"{section}.{field.name}": typing.get_type_hints(kind)[field.name]
    for section, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
}
AT_LEAST_ONE = [
    "model.n_layer", "model.n_head", "model.n_embd", "model.n_ctx", "model.n_vocab", "model.unroll",
    "train.batch_tokens", "train.micro_batch", "train.context", "train.max_steps",
    "train.eval_tokens", "train.keep_latest", "optim.decay_steps", "sample.max_new_tokens",
    "sample.top_k", "train.ramp_from_tokens", "train.cpu_devices",
    "mesh.data", "mesh.fsdp", "mesh.tensor",
]  # fmt: skip
NOT_NEGATIVE = [
    "optim.warmup_steps", "optim.peak_lr", "optim.final_lr", "optim.weight_decay",
    "train.eval_every_steps", "train.save_every_steps", "train.sample_every_steps", "train.seed",
    "sample.temperature", "train.loss_chunk_tokens", "train.ramp_steps", "train.stall_seconds",
]  # fmt: skip
PROBABILITIES = [
    "model.embd_pdrop", "model.attn_pdrop", "model.resid_pdrop", "optim.beta1", "optim.beta2",
    "optim.muon_momentum", "sample.min_p",
]  # fmt: skip


def with_fields(fields: dict[str, Any]) -> Config:
    """The default config with other values under dotted names."""
    config = Config()
    for name, value in fields.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def problems_of(config: Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return caught.value.problems


def test_the_default_config_is_valid():
    validate(Config())


def test_settings_beside_their_limits_are_valid():
    limits = dict.fromkeys(NOT_NEGATIVE + PROBABILITIES, 0) | {
        "model.n_vocab": 1, "model.unroll": 1, "train.keep_latest": 1, "train.eval_tokens": 1,
        "sample.max_new_tokens": 1, "sample.top_k": 1, "train.seed": 2**32 - 1,
        "data.val_fraction": 0.5, "data.tokenizer": "bpe:257", "optim.eps": 1e-30,
        "optim.clip_norm": 1e-30, "optim.warmup_steps": 5, "optim.decay_steps": 5,
        "train.context": 1024, "train.batch_tokens": 16 * 1024, "train.micro_batch": 16,
        "optim.cooldown_fraction": 0, "optim.ema_decay": 0, "train.profile": "0:1",
        "sample.top_p": 1e-30, "sample.repetition_penalty": 1e-30, "sample.stop": (" ",),
    }  # fmt: skip
    validate(with_fields(limits))
    validate(with_fields({"optim.cooldown_fraction": 1, "optim.ema_decay": 0.9999}))


RULES = [
    *[(name, bad, "must be at least 1", bad) for name in AT_LEAST_ONE for bad in (0, -1)],
    *[(name, -1, "must be 0 or more", -1) for name in NOT_NEGATIVE],
    *[(name, float("nan"), "must be 0 or more", "nan") for name in NOT_NEGATIVE
      if FIELDS[name] is float],
    *[(name, bad, "must be in [0, 1)", bad) for name in PROBABILITIES
      for bad in (1.0, -0.1, float("nan"))],
    ("data.val_fraction", 0.51, "must be in [0, 0.5]", 0.51),
    ("data.val_fraction", -0.01, "must be in [0, 0.5]", -0.01),
    ("data.val_fraction", float("nan"), "must be in [0, 0.5]", "nan"),
    ("optim.eps", 0.0, "must be above 0", 0.0),
    ("optim.eps", float("nan"), "must be above 0", "nan"),
    ("optim.rewarm_steps", (3, 0), "must be at least 1", 0),
    ("optim.clip_norm", 0.0, "must be above 0", "None does not clip"),
    ("optim.clip_norm", float("nan"), "must be above 0", "nan"),
    *[("optim.cooldown_fraction", bad, "must be in [0, 1]", bad)
      for bad in (-0.1, 1.1, float("nan"))],
    *[("optim.ema_decay", bad, "must be in [0, 1)", "None keeps no average")
      for bad in (-0.1, 1, 1.5, float("nan"))],
    *[("train.profile", bad, "must be STEP:COUNT with a COUNT of 1 or more", repr(bad))
      for bad in ("", "3", ":", "3:", ":2", "3:0", "-1:2", "3:-2", "a:b", "1:2:3", "1.5:2")],
    *[("sample.top_p", bad, "must be above 0 and at most 1", f"{bad} (1 keeps all)")
      for bad in (0.0, -0.1, 1.1, float("nan"))],
    *[("sample.repetition_penalty", bad, "must be above 0", f"{bad} (1 has no effect)")
      for bad in (0.0, -1.0, float("inf"), float("nan"))],
    ("sample.stop", ("a", ""), "must be texts that are not empty", ("a", "")),
    ("train.seed", 2**32, "must be below 2**32", 2**32),
    ("data.tokenizer", "gtp2", "must be gpt1, gpt2, bytes, chars, bpe:N", "did you mean gpt2?"),
    ("data.tokenizer", "byte", "must be gpt1, gpt2, bytes, chars, bpe:N", "did you mean bytes?"),
    ("data.tokenizer", "bpe:256", "N of 257 or more", "'bpe:256'"),
    ("data.tokenizer", "bpe:", "N of 257 or more", "'bpe:'"),
    ("data.tokenizer", "bpe", "N of 257 or more", "'bpe'"),
    ("data.tokenizer", "bpe:4k", "N of 257 or more", "'bpe:4k'"),
    ("data.tokenizer", "bpe:\u00b2", "N of 257 or more", "'bpe:\u00b2'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad", "expected", "got"), RULES)
def test_a_broken_rule_names_the_field_what_was_expected_and_what_came(name, bad, expected, got):
    problems = problems_of(with_fields({name: bad}))
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{name} "), problems
    assert expected in problems[0]
    assert str(got) in problems[0]


COMBINATIONS = [
    ({"model.n_head": 5}, ["model.n_embd 768", "model.n_head 5", "not divisible"]),
    ({"train.context": 2048, "train.micro_batch": 1},
     ["train.context 2048", "longer", "model.n_ctx 1024"]),
    ({"train.batch_tokens": 50_000},
     ["train.batch_tokens 50000", "1024 x 16 = 16384", "try 49152"]),
    ({"train.batch_tokens": 1}, ["train.batch_tokens 1 ", "try 16384"]),
    ({"optim.decay_steps": 699}, ["optim.warmup_steps 700", "longer", "optim.decay_steps 699"]),
    ({"optim.warmup_steps": 6, "optim.decay_steps": 5},
     ["optim.warmup_steps 6", "longer", "optim.decay_steps 5"]),
    ({"optim.moments_dtype": "bfloat16", "optim.name": "adafactor"},
     ["optim.moments_dtype bfloat16", "optim.name adafactor", "float32"]),
    ({"optim.moments_dtype": "bfloat16", "optim.beta2": 0.999},
     ["optim.moments_dtype bfloat16", "0.9 and 0.999", "below 0.996"]),
    ({"optim.moments_dtype": "bfloat16", "optim.beta1": 0.997, "optim.name": "lion"},
     ["optim.moments_dtype bfloat16", "0.997 and 0.95"]),
    ({"model.attention": "cudnn", "model.dtype": "float32"},
     ["model.attention cudnn", "model.dtype float32", "pallas"]),
    ({"model.attention": "cudnn", "model.attn_pdrop": 0.1},
     ["model.attention cudnn", "model.attn_pdrop 0.1", "pallas"]),
    ({"model.attention": "cudnn", "data.document_mask": True},
     ["model.attention cudnn", "data.document_mask", "pallas or auto"]),
    ({"train.ramp_steps": 100},
     ["train.ramp_from_tokens and train.ramp_steps go together", "not None and 100"]),
    ({"train.ramp_from_tokens": 2**18},
     ["train.ramp_from_tokens and train.ramp_steps go together", "not 262144 and 0"]),
    *[({"train.ramp_from_tokens": tokens, "train.ramp_steps": 100, "train.micro_batch": 1},
       [f"train.ramp_from_tokens {tokens} must be train.batch_tokens 524288 divided by 2, 4, 8"])
      for tokens in (2**19, 2**20, 1023, 3 * 2**17)],
    ({"train.batch_tokens": 3 * 2**17, "train.ramp_from_tokens": 2**17, "train.ramp_steps": 100},
     ["train.ramp_from_tokens 131072 must be train.batch_tokens 393216 divided by 2, 4, 8"]),
    ({"train.ramp_from_tokens": 2**13, "train.ramp_steps": 100},
     ["train.ramp_from_tokens 8192", "context x train.micro_batch = 16384", "smaller micro-batch"]),
    ({"train.ramp_from_tokens": 512, "train.ramp_steps": 100, "train.micro_batch": "auto"},
     ["train.ramp_from_tokens 512", "context x train.micro_batch = 1024"]),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), COMBINATIONS)
def test_an_impossible_combination_names_every_number_in_it(fields, words):
    problems = problems_of(with_fields(fields))
    assert len(problems) == 1, problems
    assert [word for word in words if word not in problems[0]] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"train.ramp_from_tokens": 2**14, "train.ramp_steps": 1},
        {"train.ramp_from_tokens": 1024, "train.ramp_steps": 9, "train.micro_batch": "auto"},
        {"optim.moments_dtype": "bfloat16", "optim.beta2": 0.99},
        {"optim.moments_dtype": "bfloat16", "optim.name": "muon"},
        {"optim.name": "adafactor", "optim.beta2": 0.999},
        {"model.attention": "cudnn", "model.dtype": "float16", "model.resid_pdrop": 0.1},
        {"model.attention": "auto", "model.dtype": "float32", "model.attn_pdrop": 0.1},
        {"train.micro_batch": "auto"},
    ],
    ids=str,
)
def test_combinations_beside_the_impossible_ones_are_valid(fields):
    validate(with_fields(fields))


@pytest.mark.parametrize(
    ("text", "window"), [("0:1", (0, 1)), ("10:5", (10, 5)), ("007:2", (7, 2)), ("5:0", None)]
)
def test_a_profile_is_read_as_step_and_count(text, window):
    assert profile_window(text) == window


def test_an_automatic_micro_batch_needs_only_whole_sequences():
    problems = problems_of(with_fields({"train.micro_batch": "auto", "train.batch_tokens": 1500}))
    assert problems == [
        "train.batch_tokens 1500 is not divisible by context x train.micro_batch = 1024 x auto = "
        "1024: try 1024"
    ]


@pytest.mark.parametrize("tokens", [1, 5_000, 20_000, 100_000, 2**19 + 1])
def test_the_batch_that_is_suggested_is_a_valid_one(tokens):
    suggested = problems_of(with_fields({"train.batch_tokens": tokens}))[0].split("try ")[1]
    validate(with_fields({"train.batch_tokens": int(suggested)}))


WRONG = {
    int: (1.0, "1", True, None),
    float: ("0.1", True, None),
    bool: (1, 0, "yes", None),
    bool | None: (1, 0, "yes"),
    str: (1, b"x", None),
    int | None: (1.0, "1", False),
    float | None: ("1", True),
    str | None: (1, b"gpt2"),
    tuple[str, ...]: (["a"], "a", ("a", 1), None),
    tuple[int, ...]: ([1], 1, (1, "2"), (1.0,), (True,), None),
}


def wrong_values(kind: Any) -> tuple[Any, ...]:
    choices = (kind, *typing.get_args(kind))
    is_choice = any(typing.get_origin(choice) is typing.Literal for choice in choices)
    if not is_choice:
        return WRONG[kind]
    return ("none of these", 1.5, True) if int in choices else ("none of these", 1)


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, kind in FIELDS.items() for bad in wrong_values(kind)]
)
def test_a_value_of_the_wrong_type_is_refused(name, bad):
    expected = f"{name} must be {type_name(FIELDS[name])}, not {bad!r}"
    assert problems_of(with_fields({name: bad})) == [expected]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "int"),
        (float | None, "float or None"),
        (tuple[str, ...], "a list of str"),
        (typing.Literal["pre", "post"], "one of pre, post"),
        (typing.Literal["stdlib"] | None, "one of stdlib or None"),
    ],
)
def test_types_are_named_as_a_person_would(kind, words):
    assert type_name(kind) == words


def test_a_section_of_the_wrong_kind_is_refused():
    problems = problems_of(Config(model=DataConfig(), train=None))  # pyright: ignore
    assert [p.split(" ")[0] for p in problems] == ["model", "train"]


@pytest.mark.parametrize("name", [name for name, kind in FIELDS.items() if float in (
    kind, *typing.get_args(kind))])  # fmt: skip
def test_float_fields_accept_integers(name):
    above_0 = (
        *("optim.eps", "optim.clip_norm", "sample.top_p", "sample.repetition_penalty"),
        *("train.epochs", "train.eval_every_epochs", "model.lora_alpha"),
        *("train.skip_zscore", "train.rollback_zscore"),
    )
    fields: dict[str, Any] = {name: 1 if name in above_0 else 0}
    config = with_fields(fields)
    if name in ("train.epochs", "train.eval_every_epochs", "optim.warmup_fraction"):
        config = dataclasses.replace(config, task="classify")
    validate(config)


@pytest.mark.parametrize(
    "bad",
    [
        {"model.n_layer": "12", "model.bias": 1, "optim.beta1": None, "data.inputs": ["a"]},
        dict.fromkeys(AT_LEAST_ONE + NOT_NEGATIVE + PROBABILITIES, -1),
        {"model.n_head": 7, "train.batch_tokens": 3, "optim.decay_steps": 1},
        {"model.n_layer": "12", "train.seed": -1},
        {"train.seed": -1, "model.n_head": 7},
        {"optim.eps": 0.0, "train.max_steps": 0, "data.tokenizer": "x", "train.context": 4096},
    ],
    ids=["types", "ranges", "combinations", "type+range", "range+combination", "all over"],
)
def test_every_problem_is_listed_at_once(bad):
    problems = problems_of(with_fields(bad))
    unnamed = [name for name in bad if not any(name in problem for problem in problems)]
    assert unnamed == []


def test_the_message_counts_and_lists_the_problems():
    with pytest.raises(ConfigError, match=r"has 1 problem:\n  - train\.seed") as one:
        validate(with_fields({"train.seed": -1}))
    with pytest.raises(ConfigError, match=r"has 2 problems:\n  - .*\n  - ") as two:
        validate(with_fields({"train.seed": -1, "model.n_layer": 0}))
    assert [len(one.value.problems), len(two.value.problems)] == [1, 2]
    assert one.value.exit_code == 2


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_config_survives_json(name):
    config = load_config(name)
    again = config_from_json(to_json(config), "config.json")
    assert again == config
    assert to_json(again) == to_json(config)


def test_json_holds_every_field_of_every_section():
    written = json.loads(to_json(Config()))
    assert written.pop("task") == "pretrain"
    assert {f"{s}.{name}" for s, fields in written.items() for name in fields} == set(FIELDS)


def test_unusual_values_survive_json():
    unusual = {
        "data.inputs": ('a"b', "\u00e9\n"), "sample.prompt": "\ud800", "optim.eps": 1e-30,
        "optim.clip_norm": None, "train.context": 1024, "optim.weight_decay": 0,
        "train.micro_batch": "auto", "optim.ema_decay": 0.5, "sample.stop": ("\n", "\u00e9"),
    }  # fmt: skip
    config = dataclasses.replace(with_fields(unusual), task="instruct")
    assert config_from_json(to_json(config), "config.json") == config


def whole(changes: dict) -> str:
    """JSON with all sections, some of their fields changed."""
    sections = {name: {} for name, kind in typing.get_type_hints(Config).items() if kind is not str}
    return json.dumps(sections | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["config.json"]),
        ("{", ["config.json"]),
        ("[]", ["config.json"]),
        ("null", ["config.json"]),
        ('"model"', ["config.json"]),
        ('{"model": 3}', ["config.json"]),
        ("{}", ["config.json", "no section model"]),
        ('{"modle": {}}', ["config.json", "modle"]),
        (whole({"model": {"n_layers": 3}}), ["config.json", "n_layers"]),
        (whole({"model": {"n_layer": "3"}}), ["model.n_layer must be int, not '3'"]),
        (whole({"task": 3}), ["task must be str, not 3"]),
        (whole({"data": {"inputs": [1]}}), ["data.inputs must be a list of str"]),
        (whole({"train": {"seed": -1}, "optim": {"eps": 0}}), ["train.seed", "optim.eps"]),
    ],
)
def test_json_that_is_no_config_is_refused_by_name(text, words):
    with pytest.raises(ConfigError) as caught:
        config_from_json(text, "runs/x/config.json")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_config_from_before_there_was_a_mesh_can_still_be_read():
    config = Config(train=TrainConfig(max_steps=7))
    old = json.loads(to_json(config))
    del old["task"], old["mesh"], old["train"]["wire_dtype"], old["sample"]["top_p"]
    assert config_from_json(json.dumps(old), "config.json") == config


@pytest.mark.parametrize("steps", [0, 1001, 10**20])
def test_a_call_makes_at_most_a_thousand_steps(steps):
    problems = find_problems(Config(train=TrainConfig(updates_per_call=steps)))
    assert [p.message for p in problems] == [
        f"train.updates_per_call must be 1 to 1000, not {steps}"
    ]


@pytest.mark.parametrize(
    ("n_vocab", "rows"), [(1, 128), (128, 128), (129, 256), (257, 384), (50257, 50304)]
)
def test_the_vocabulary_is_padded_to_whole_tiles(n_vocab, rows):
    assert ModelConfig(n_vocab=n_vocab).padded_vocab == rows


def test_an_unknown_vocabulary_cannot_be_padded():
    with pytest.raises(ValueError, match="n_vocab is not known yet"):
        _ = ModelConfig().padded_vocab


def test_context_and_rows_follow_from_the_other_fields():
    assert (Config().context, Config().batch_rows) == (1024, 512)
    shorter = with_fields({"train.context": 256})
    assert (shorter.context, shorter.batch_rows) == (256, 2048)
    assert ModelConfig(n_embd=96, n_head=6).head_dim == 16

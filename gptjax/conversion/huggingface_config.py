"""What config.json of a Hugging Face directory says about a GPT, as our `ModelConfig`.

The two model types are `gpt2` and `openai-gpt`, with the fields and the defaults of transformers'
GPT2Config and OpenAIGPTConfig. What our network does not compute is refused: a model that is read
all the same would give other logits.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.config import ModelConfig

CONFIG = "config.json"
ModelType = Literal["gpt2", "openai-gpt"]
Settings = Mapping[str, Any]
EPSILON = 1e-5  # of our layer norms
OWN_SECTION = "gptjax"  # in config.json of our exports: switches that Hugging Face has no field for
OWN_SWITCHES = ("bias", "qkv_bias", "scale_residual_init")
_TANH, _EXACT = "gelu_tanh", "gelu_erf"
# OpenAIGPTModel calls the tanh form gelu
ACTIVATIONS = {
    "gpt2": {
        **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), _TANH),
        **dict.fromkeys(("gelu", "gelu_python"), _EXACT),
    },
    "openai-gpt": {"gelu": _TANH, "gelu_new": _TANH},
}
_FIELD_OF_ACTIVATION = {"gpt2": "activation_function", "openai-gpt": "afn"}
_DEFAULT_ACTIVATION = {"gpt2": "gelu_new", "openai-gpt": "gelu"}
# our field: its names, the newest first
_SIZES = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_ctx": ("n_positions", "max_position_embeddings", "n_ctx"),
    "n_vocab": ("vocab_size",),
}
_DEFAULT_SIZES = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "n_vocab": 50257},
    "openai-gpt": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 512, "n_vocab": 40478},
}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# what our network computes, for fields whose other values it does not
_ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "quantization_config": None,
}


def read_settings(directory: Path, name: str = CONFIG) -> dict[str, Any]:
    """The object in config.json or another file; raises `UserError` if it is missing or no JSON."""
    path = directory / name
    require_fetched(path)
    try:
        settings = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} has no {name}: copy it from the place that the weights come from"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({str(error) or type(error).__name__}): fetch it again"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not an object of JSON, but a {type(settings).__name__}")
    return settings


def model_type_of(settings: Settings, path: Path) -> ModelType:
    """`gpt2` or `openai-gpt`; raises `UserError` for any other architecture."""
    found = settings.get("model_type")
    if isinstance(found, str) and found in ACTIVATIONS:
        return "gpt2" if found == "gpt2" else "openai-gpt"
    named = settings.get("architectures") or ["no architecture"]
    what = f"model type {found!r}" if found else f"no model type, and {named}"
    raise UserError(
        f"{path} describes another network ({what!s:.200}): gptjax is GPT-1, GPT-2 and GPT-3, so "
        "expected model_type gpt2 or openai-gpt"
    )


def model_of(settings: Settings, path: Path) -> ModelConfig:
    """Shape and switches of the model, computed in float32; its vocabulary has all its rows.

    Raises one `UserError` with every setting that our network cannot follow; `path` is the file.
    """
    kind = model_type_of(settings, path)
    if problems := [*_misfits(settings, kind), *_size_problems(settings, kind)]:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"{path} asks for what gptjax does not compute:{listed}")
    own = settings.get(OWN_SECTION, {})
    first = kind == "openai-gpt"
    return replace(
        ModelConfig(
            norm="post" if first else "pre",
            final_norm=not first,
            scale_residual_init=not first,
            tied_head=settings.get("tie_word_embeddings", True),
            activation=_activation(settings, kind)[1],
            dtype="float32",
        ),
        **_sizes(settings, kind),
        **{name: float(settings.get(name, 0.1)) for name in _DROPOUTS},
        **{name: own[name] for name in OWN_SWITCHES if name in own},
    )


def _sizes(settings: Settings, kind: ModelType) -> dict[str, Any]:
    return {
        ours: next((settings[n] for n in names if n in settings), _DEFAULT_SIZES[kind][ours])
        for ours, names in _SIZES.items()
    }


def _activation(settings: Settings, kind: ModelType) -> tuple[Any, Any]:
    """The name of the activation there, and ours, which is None for one that we do not have."""
    name = settings.get(_FIELD_OF_ACTIVATION[kind], _DEFAULT_ACTIVATION[kind])
    return name, ACTIVATIONS[kind].get(name) if isinstance(name, str) else None


def _size_problems(settings: Settings, kind: ModelType) -> Iterator[str]:
    sizes = _sizes(settings, kind)
    for ours, size in sizes.items():
        if type(size) is not int or size < 1:
            yield f"{_SIZES[ours][0]} is {size!r:.40}, expected a whole number of 1 or more"
            return
    width, heads, inner = sizes["n_embd"], sizes["n_head"], settings.get("n_inner")
    if width % heads:
        yield f"n_head {heads} does not divide n_embd {width}"
    if inner not in (None, 4 * width):
        yield f"n_inner is {inner!r:.40}, expected null or 4 x n_embd = {4 * width}"


def _misfits(settings: Settings, kind: ModelType) -> Iterator[str]:
    name, ours = _activation(settings, kind)
    if ours is None:
        known = ", ".join(ACTIVATIONS[kind])
        yield f"{_FIELD_OF_ACTIVATION[kind]} is {name!r:.40}, expected one of {known}"
    epsilon = settings.get("layer_norm_epsilon", EPSILON)
    if epsilon != EPSILON:
        yield f"layer_norm_epsilon is {epsilon!r:.40}, expected {EPSILON}"
    for field, value in _ONLY.items():
        if settings.get(field, value) not in (value, None):
            yield f"{field} is {settings[field]!r:.80}, expected {json.dumps(value)}"
    for field in _DROPOUTS:
        rate = settings.get(field, 0.1)
        if type(rate) not in (int, float) or not 0 <= rate < 1:
            yield f"{field} is {rate!r:.40}, expected a number in [0, 1)"
    own = settings.get(OWN_SECTION, {})
    if not isinstance(own, dict):
        yield f"{OWN_SECTION} is {own!r:.40}, expected an object with switches"
    switches = {"tie_word_embeddings": settings.get("tie_word_embeddings", True)}
    switches |= {n: own[n] for n in OWN_SWITCHES if n in own} if isinstance(own, dict) else {}
    for field, value in switches.items():
        if type(value) is not bool:
            yield f"{field} is {value!r:.40}, expected true or false"

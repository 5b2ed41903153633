"""Adapters in the format of PEFT, out and in: adapter_config.json and adapter_model.safetensors.

PEFT stores an adapter of each layer apart and transposed: `lora_A.weight` [R, D] and
`lora_B.weight` [F, R] beside GPT-2's `Conv1D`, whose kernel [D, F] is ours. Letters: N layers,
D inputs, F outputs, R rank.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import ModelConfig
from gptjax.conversion.huggingface_config import read_settings
from gptjax.conversion.stored_arrays import open_file
from gptjax.model.places import STACK, Leaf, leaves

SETTINGS = "adapter_config.json"
ARRAYS = "adapter_model.safetensors"
FILES = (ARRAYS, "adapter_model.bin")
_PREFIX = "base_model.model.transformer.h"
_NAME = re.compile(
    r"base_model\.model\.(?:transformer\.)?h\.(\d+)\.(.+)\.(lora_[AB])(?:\.default)?\.weight"
)
# what an adapter of ours computes, for settings of which other values compute something else
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None,),
}


def is_peft(path: Path) -> bool:
    """Whether a directory has an adapter as PEFT's `save_pretrained` writes it."""
    return (path / SETTINGS).is_file()


def to_peft(adapters: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Arrays under PEFT's names from the leaves of adapters."""
    theirs = {}
    for leaf in _adapter_leaves(cfg):
        for i, matrix in enumerate(np.asarray(adapters[leaf.name], np.float32)):
            name = _module_there(leaf)
            theirs[f"{_PREFIX}.{i}.{name}.weight"] = np.ascontiguousarray(matrix.T)
    return theirs


def settings_for_peft(cfg: ModelConfig, base: str) -> dict[str, Any]:
    """adapter_config.json of adapters beside the model that `base` names.

    >>> settings_for_peft(ModelConfig(n_vocab=9, lora_rank=4), "runs/base@9")["target_modules"]
    ['attn.c_attn']
    """
    modules = dict.fromkeys(_module_there(leaf).rpartition(".")[0] for leaf in _adapter_leaves(cfg))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": cfg.lora_rank,
        "lora_alpha": cfg.lora_alpha,
        "lora_dropout": cfg.lora_dropout,
        "target_modules": list(modules),
        "fan_in_fan_out": True,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def read_peft_settings(path: Path) -> dict[str, Any]:
    """The object in adapter_config.json; raises `UserError` if ours compute something else."""
    settings = read_settings(path, SETTINGS)
    wrong = [
        f"{name} is {settings[name]!r:.60}, expected {json.dumps(values[0])}"
        for name, values in _ONLY.items()
        if name in settings and settings[name] not in values
    ]
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        wrong.append(f"r is {rank!r:.40}, expected a whole number of 1 or more")
    if not isinstance(alpha, int | float) or alpha <= 0:
        wrong.append(f"lora_alpha is {alpha!r:.40}, expected a number above 0")
    if wrong:
        listed = "".join(f"\n  - {problem}" for problem in wrong)
        raise UserError(f"{path / SETTINGS} asks for what gptjax does not compute:{listed}")
    return settings


def read_peft(path: Path, base: ModelConfig) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The adapters of a directory for a model like `base`: its config with them, and their leaves.

    Layers without an adapter get one that adds nothing. Raises `UserError` for adapters of other
    modules, and for arrays of other shapes.
    """
    settings = read_peft_settings(path)
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    if settings.get("use_rslora"):  # Kalajdzievski (2023): divided by the root of the rank
        alpha *= rank**0.5
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} has no {ARRAYS}: fetch it again")
    stored = open_file(file)
    found, strange = {}, []
    for name in stored:
        match = _NAME.fullmatch(name)
        if match is None:
            strange.append(name)
        else:
            layer, module, which = match.groups()
            found[int(layer), f"{STACK}{module.replace('.', '/')}/{which}"] = name
    modules = {name.removeprefix(STACK).rpartition("/")[0] for _, name in found}
    cfg = replace(
        base,
        lora_rank=rank,
        lora_alpha=alpha,
        lora_dropout=float(settings.get("lora_dropout") or 0.0),
        lora_targets=tuple(sorted(modules)),
    )
    shapes = {leaf.name: leaf.shape for leaf in _adapter_leaves(cfg)}
    problems = [f"{name} is no adapter of a block's matrix" for name in strange]
    problems += _misplaced(found, stored, shapes)
    if problems or not found:
        more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
        listed = "".join(f"\n  - {problem}" for problem in [*problems[:8], *more])
        raise UserError(f"the adapters in {file} do not fit the model beneath:{listed or ' none'}")
    adapters = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for (layer, name), theirs in found.items():
        adapters[name][layer] = stored[theirs].T
    return cfg, adapters


def _misplaced(
    found: Mapping[tuple[int, str], str],
    stored: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[str]:
    """What of the arrays does not fit the adapters of a model."""
    for (layer, name), theirs in found.items():
        if name not in shapes or layer >= shapes[name][0]:
            yield f"{theirs} belongs to no matrix of the model"
        elif (is_there := stored[theirs].shape) != (fits := shapes[name][:0:-1]):
            yield f"{theirs} is {is_there}, expected {fits}"


def _adapter_leaves(cfg: ModelConfig) -> list[Leaf]:
    return [leaf for leaf in leaves(cfg) if "/lora_" in leaf.name]


def _module_there(leaf: Leaf) -> str:
    """The name of a leaf inside a layer of GPT-2, such as attn.c_attn.lora_A."""
    return leaf.name.removeprefix(STACK).replace("/", ".")

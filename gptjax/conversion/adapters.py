"""Runs of adapters that go out and come in: merged, or in the format of PEFT."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.tree import as_tree, named_leaves
from gptjax.conversion.adapter_card import adapter_card
from gptjax.conversion.averages import choose_average, find_average
from gptjax.conversion.classifier_file import write_classifier
from gptjax.conversion.finding import find_model
from gptjax.conversion.huggingface import is_huggingface
from gptjax.conversion.model_card import CARD
from gptjax.conversion.new_directory import new_directory, require_free
from gptjax.conversion.opening import load_adapted, load_run
from gptjax.conversion.peft import (
    ARRAYS,
    SETTINGS,
    read_peft,
    read_peft_settings,
    settings_for_peft,
    to_peft,
)
from gptjax.conversion.pinned import chosen, pin, pinned_base
from gptjax.conversion.run_directory import config_for, write_step_0
from gptjax.conversion.shapes import read_source
from gptjax.runs.directory import RunDir
from gptjax.runs.naming import ADAPTERS, PARAMS, read_checkpoint_name


def merge_run(run_name: str, out: Path, averaged: bool = False) -> list[str]:
    """Write the run of adapters `run_name` as a run of a whole model; returns notes for the user.

    It has one checkpoint, of step 0, and the task, labels and template of the run. `averaged` takes
    the running average of the adapters, as in `choose_average`; the base gives its average where it
    has one, since the adapters were trained on that. Raises `UserError`, with nothing written, if
    the run has no adapters, and like `load_run`.
    """
    require_free(out)
    run_dir = RunDir(read_checkpoint_name(run_name).path)
    if run_dir.checkpoints.is_dir() and not run_dir.read_config().model.lora_rank:
        raise UserError(f"{run_dir.path} has no adapters to merge: it is a whole model already")
    name, notes = choose_average(run_name, averaged)
    loaded = load_run(str(name), averaged)
    config = loaded.config
    config = replace(
        config,
        train=replace(config.train, init_from=None),
        optim=replace(config.optim, trainable=(), trainable_layers=None),
    )
    items = {PARAMS: jax.device_get(loaded.params)}
    with new_directory(out) as directory:
        write_step_0(directory, config, loaded.tokenizer, items, loaded.origin)
    return notes


def export_peft(run_name: str, out: Path, averaged: bool = False) -> list[str]:
    """Write the adapters of a run as PEFT's `save_pretrained` does; returns notes for the user.

    `averaged` takes their running average, as in `choose_average`. A head that classifies goes into
    a file of its own. Raises `UserError`, with nothing written, if the run has no adapters, or rows
    of special tokens, which its base lacks.
    """
    require_free(out)
    name, notes = choose_average(run_name, averaged)
    run_dir = RunDir(name.path)
    adapted, config = load_adapted(str(name), averaged), run_dir.read_config()
    if adapted.cfg.n_special > adapted.base.config.model.n_special:
        raise UserError(
            f"{run_dir.path} reads start, delimiter and extract tokens, whose embeddings are in no "
            "file of PEFT: write the whole model with --merge, and then --to huggingface"
        )
    ours = {k: np.asarray(x) for k, x in named_leaves(jax.device_get(adapted.adapters)).items()}
    base, base_has_average = find_average(pinned_base(run_dir.path))
    # adapters are trained on the average of a base that has one
    flag = " --averaged" if base_has_average else ""
    theirs = is_huggingface(base.path)
    if not theirs:
        notes += [f"PEFT loads it on its base, by --run {base} --to huggingface{flag}"]
    with new_directory(out) as directory:
        from safetensors.numpy import save_file

        settings = settings_for_peft(adapted.cfg, str(base))
        card = adapter_card(adapted.cfg, run_name, str(base), out, None if theirs else flag)
        (directory / CARD).write_text(card, "utf-8")
        (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        save_file(to_peft(ours, adapted.cfg), directory / ARRAYS, metadata={"format": "pt"})
        notes += write_classifier(ours, config, directory)
    return notes


def import_peft(source: Path, base: str | None, out: Path) -> list[str]:
    """Write a directory of PEFT as a run of adapters; returns lines about it.

    `base` names the model beneath, a run or a Hugging Face directory; by default it is what the
    directory itself names, if that is on this machine. Raises `UserError`, with nothing written,
    for a model that it does not fit, and for adapters that compute something else than ours.
    """
    require_free(out)
    name = base or read_peft_settings(source).get("base_model_name_or_path")
    beneath = None if not name else read_checkpoint_name(Path(name).expanduser())
    if beneath is None or (base is None and not beneath.path.exists()):
        known = f", which it calls {name}" if name else ""
        raise UserError(
            f"{source} is an adapter: give the model beneath it{known} with --base, a run or a "
            "Hugging Face directory"
        )
    beneath = chosen(find_model(str(beneath)))
    found = read_source(str(beneath))
    cfg, arrays = read_peft(source, found.model)
    origin = f"PEFT's adapter {source} on {beneath}"
    with new_directory(out) as directory:
        config = config_for(cfg, found.tokenizer)
        items = {ADAPTERS: as_tree(arrays)}
        notes = pin(beneath, directory, out)
        write_step_0(directory, config, found.tokenizer, items, origin)
    targets = ", ".join(cfg.lora_targets)
    return [
        f"adapters   rank {cfg.lora_rank}, alpha {cfg.lora_alpha:g}, beside {targets}, on {name}",
        *notes,
    ]

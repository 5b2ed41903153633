"""An evaluation as a table on standard output, and as JSON with the conditions of measurement."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gptjax.base.files import sha256_of, write_atomically
from gptjax.data.manifest import is_prepared, read_manifest
from gptjax.evaluation.classes import confusion_lines
from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.registry import EVALUATIONS
from gptjax.evaluation.setting import Setting
from gptjax.model.size import parameter_count

ERROR = "stderr"
UNITS = {
    "loss": "nats per {}",
    "perplexity": "per {}",
    "bits_per_byte": "bits",
    "word_perplexity": "per word",
    "byte_perplexity": "per byte",
}


def as_table(figures: Figures, scored: str = "token") -> str:
    """Lines of name, figure, standard error and unit; figures without a value are left out.

    `scored` is what `loss` and `perplexity` are means over. A confusion matrix follows as a table.

    >>> print(as_table({"loss": 3.25, "stderr": 0.01, "tokens": 12345}))
    loss      3.2500 ± 0.0100  nats per token
    tokens    12,345
    """
    labels, confusion = figures.get("labels"), figures.get("confusion")
    figures = {k: x for k, x in figures.items() if not isinstance(x, list)}
    shown = [name for name in figures if name != ERROR and not name.endswith(f"_{ERROR}")]
    width, lines = max(map(len, shown)) + 2, []
    for name in shown:
        value, unit = figures[name], UNITS.get(name, "").format(scored)
        error = figures.get(f"{name}_{ERROR}", figures.get(ERROR) if name == "loss" else None)
        if value is None:
            continue
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        text += f" ± {error:,.4f}" if error is not None else ""
        text += f"  {unit}" if unit else ""
        lines.append(f"{name.replace('_', ' '):{width}}  {text}")
    if confusion and labels:
        lines += ["", *confusion_lines(confusion, labels)]
    return "\n".join(lines)


def identity_of(data: str) -> str | None:
    """The sha256 of a file, or the fingerprint of a prepared directory; None for anything else."""
    path = Path(data)
    if is_prepared(path):
        return read_manifest(path).fingerprint
    return sha256_of(path, lambda size: None) if path.is_file() else None


def conditions(setting: Setting, name: str, seconds: float) -> dict[str, Any]:
    """What another has to know to measure the same, and on what this was measured."""
    cfg, device = setting.scorer.cfg, jax.devices()[0]
    return {
        "on": name,
        "run": setting.run.origin,
        "step": setting.run.step,
        "parameters": parameter_count(cfg),
        "tokenizer": setting.run.tokenizer.name,
        "data": setting.data,
        "data_identity": identity_of(setting.data),
        "limit": setting.limit,
        **{field: getattr(setting, field) for field in sorted(EVALUATIONS[name].reads)},
        "context": setting.scorer.context,
        "dtype": cfg.dtype,
        "batch": setting.scorer.batch_rows,
        "programs": len(setting.scorer.shapes),
        "seconds": round(seconds, 3),
        "device": f"{device.device_kind} ({device.platform})",
        "versions": {name: version(name) for name in ("gptjax", "jax")},
    }


def write_json(path: Path, figures: Figures, conditions: Mapping[str, Any]) -> None:
    """Write the figures at the top level of an object, and `conditions` in a field of that name."""
    table = {**figures, "conditions": dict(conditions)}
    write_atomically(path, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())

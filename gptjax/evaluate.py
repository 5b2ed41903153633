"""Measure a model: `python -m gptjax.evaluate --run RUN --on perplexity --data FILE`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax
from gptjax.config.origins import flag_of
from gptjax.evaluation.registry import EVALUATIONS


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure a model by tests that others publish, and print a table."""

    run: str = "runs/quickstart"
    """RUN, RUN@best (lowest validation loss, the default), RUN@latest, RUN@STEP, or a Hugging Face
    directory."""
    on: str = "perplexity"
    """What to measure: perplexity, wikitext, hellaswag, lambada or choices."""
    data: str = ""
    """The published file, a text, a prepared directory (its validation split), or a data set of the
    Hugging Face hub."""
    stride: int | None = None
    """Tokens by which the window of perplexity moves; the default is the whole window. A smaller
    one gives every token more context and takes longer."""
    limit: int | None = None
    """Use only so many items, windows or pages, from the beginning."""
    json: Path | None = None
    """File to write the figures to, with the conditions of the measurement."""
    batch: int = 16
    """Rows that the model reads at once."""
    context: int | None = None
    """Longest window, in tokens; the default is that of the run's training."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of activations and matrix products; others than float32 change the figures."""
    averaged: bool = True
    """Measure the running average of the parameters, if the run keeps one."""
    text_field: str | None = None
    """Field of JSON, CSV or Parquet that holds the text of perplexity."""


def evaluate(argv: Sequence[str]) -> int:
    """Load a model, measure it, print the table and write the JSON file."""
    command = parse(EvaluateCommand, argv, "python -m gptjax.evaluate")
    _check(command)
    evaluation = EVALUATIONS[command.on]
    if idle := [f for f in ("stride", "text_field") if _is_idle(command, f)]:
        flags = " and ".join(map(flag_of, idle))
        print(f"note: {command.on} does not read {flags}, which has no effect", file=sys.stderr)
    import_jax()

    from gptjax.cluster.compiler import enable_compilation_cache
    from gptjax.conversion.opening import load_run
    from gptjax.evaluation.report import as_table, write_json
    from gptjax.evaluation.scoring import Scorer
    from gptjax.evaluation.setting import Setting, conditions

    enable_compilation_cache()
    run = load_run(command.run, averaged=command.averaged)
    context = command.context or run.config.context
    _check_context(command, context, run.config.model.n_ctx)
    scorer = Scorer(run.config.model, run.params, command.batch, command.dtype, context)
    print(f"{run.origin}, {command.dtype}, context {context}", file=sys.stderr)
    given: dict[str, Any] = {f: getattr(command, f) for f in evaluation.reads}
    setting, began = Setting(run, scorer, command.data, command.limit, **given), time.perf_counter()
    figures = evaluation.measure(setting)
    seconds = time.perf_counter() - began
    print(f"{command.on} on {command.data}, {seconds:,.1f} s")
    print(as_table(figures))
    if command.json is not None:
        write_json(command.json, figures, conditions(setting, command.on, seconds))
    return 0


def _is_idle(command: EvaluateCommand, field: str) -> bool:
    """Whether a flag was given that this evaluation does not read."""
    return getattr(command, field) is not None and field not in EVALUATIONS[command.on].reads


def _check(command: EvaluateCommand) -> None:
    """Raise one `ConfigError` with every problem of the flags."""
    problems = []
    if command.on not in EVALUATIONS:
        near = did_you_mean(command.on, EVALUATIONS)
        problems.append(f"--on must be one of {', '.join(EVALUATIONS)}, not {command.on}{near}")
    if not command.data:
        problems.append("--data is missing: give a file, a directory or a data set of the hub")
    for name in ("stride", "limit", "batch", "context"):
        value = getattr(command, name)
        if value is not None and value < 1:
            problems.append(f"{flag_of(name)} must be at least 1, not {value}")
    if (out := command.json) is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        problems.append(f"--json {out} is a directory or in none: expected the name of a file")
    if problems:
        raise ConfigError(problems)


def _check_context(command: EvaluateCommand, context: int, n_ctx: int) -> None:
    """Raise `ConfigError` for windows that the model cannot read, or that leave out tokens."""
    problems = []
    if context > n_ctx:
        problems.append(f"--context must be at most {n_ctx}, the model's, not {context}")
    if command.stride is not None and command.stride > context:
        problems.append(f"--stride must be at most {context}, the window, not {command.stride}")
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    main(evaluate)

"""The flags of `python -m gptjax.evaluate`, and what can be wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptjax.base.errors import ConfigError, did_you_mean
from gptjax.config.origins import flag_of
from gptjax.evaluation.registry import EVALUATIONS

LM_EVAL = "--lm-eval"
NOT_LM_EVAL = (
    "on", "stride", "limit", "json", "style", "split", "text_field", "markdown", "judge",
    "judge_model", "replay",
)  # fmt: skip
NOT_REPLAY = (
    "on", "data", "stride", "context", "style", "split", "text_field", "markdown", "judge",
    "judge_model",
)  # fmt: skip
NOT_COMPARE = (*NOT_LM_EVAL, "run", "data", "batch", "context", "dtype", "averaged")


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure a model by tests that others publish, and print a table.

    All words after --lm-eval go to the command line of lm-evaluation-harness, which then measures;
    --data is TASK=FILE for tasks that shall read local files.
    """

    run: str = "runs/quickstart"
    """RUN, RUN@best (lowest validation loss, the default), RUN@latest, RUN@STEP, or a Hugging Face
    directory."""
    on: str = "perplexity"
    """What to measure: perplexity, wikitext, hellaswag, lambada, choices, labels or responses."""
    data: str = ""
    """The published file, a text, a prepared directory (its validation split), or a data set of the
    Hugging Face hub."""
    replay: int | None = None
    """In place of a measurement: show the rows that this step of the run read, each with its loss,
    the highest first."""
    stride: int | None = None
    """Tokens by which the window of perplexity moves; the default is the whole window. A smaller
    one gives every token more context and takes longer."""
    limit: int | None = None
    """Use only so many items or pages, from the beginning, or windows of perplexity, spread evenly
    as in the validation of a run; of a replayed step, show so many rows."""
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
    style: Literal["lm-eval", "llmc", "both"] | None = None
    """Style of hellaswag: lm-evaluation-harness's (the default), llm.c's, or both."""
    split: Literal["train", "validation", "test"] | None = None
    """Part of the examples of labels, or the part test of responses, divided as the run did; the
    default is all of them."""
    text_field: str | None = None
    """Field of JSON, CSV or Parquet that holds the text of perplexity."""
    markdown: str | None = None
    """File for the responses of responses, each beside its reference."""
    judge: str | None = None
    """Address of an API with OpenAI's chat completions, such as http://127.0.0.1:11434/v1, whose
    model grades the responses. They are sent there, with the key in OPENAI_API_KEY if it is set."""
    judge_model: str | None = None
    """Name of the model that grades."""
    compare: tuple[str, ...] = ()
    """Runs to show side by side, in place of a measurement: RUN RUN ..."""
    out: Path | None = None
    """Page to write with --compare; the default is compare.html."""


def idle_flags(command: EvaluateCommand) -> list[str]:
    """The fields of the flags that were given and that this evaluation does not read."""
    optional = frozenset().union(*(row.reads for row in EVALUATIONS.values()))
    unread = sorted(optional - EVALUATIONS[command.on].reads)
    return [field for field in unread if getattr(command, field) is not None]


def check_flags(command: EvaluateCommand, is_harness: bool) -> None:
    """Raise one `ConfigError` with every problem of the flags."""
    problems = []
    for name in NOT_LM_EVAL if is_harness else ():
        if getattr(command, name) != getattr(EvaluateCommand(), name):
            problems.append(f"{flag_of(name)} is not for {LM_EVAL}: leave it out, or see --help")
    for name in NOT_REPLAY if command.replay is not None else ():
        if getattr(command, name) != getattr(EvaluateCommand(), name):
            problems.append(f"{flag_of(name)} is not for --replay: leave it out")
    for name in NOT_COMPARE if command.compare else ():
        if getattr(command, name) != getattr(EvaluateCommand(), name):
            problems.append(f"{flag_of(name)} is not for --compare: leave it out")
    if command.out is not None and not command.compare:
        problems.append("--out is for --compare: leave it out, or see --json")
    if command.on not in EVALUATIONS:
        near = did_you_mean(command.on, EVALUATIONS)
        problems.append(f"--on must be one of {', '.join(EVALUATIONS)}, not {command.on}{near}")
    needs_data = not is_harness and command.replay is None and not command.compare
    if not command.data and needs_data:
        problems.append("--data is missing: give a file, a directory or a data set of the hub")
    for name in ("replay", "stride", "limit", "batch", "context"):
        value = getattr(command, name)
        if value is not None and value < 1:
            problems.append(f"{flag_of(name)} must be at least 1, not {value}")
    for name in ("json", "markdown", "out"):
        out = None if getattr(command, name) is None else Path(getattr(command, name))
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            problems.append(
                f"{flag_of(name)} {out} is a directory or in none: expected the name of a file"
            )
    if (command.judge is None) != (command.judge_model is None):
        problems.append("--judge URL and --judge-model NAME need each other: give both or none")
    if problems:
        raise ConfigError(problems)


def check_context(command: EvaluateCommand, context: int, n_ctx: int) -> None:
    """Raise `ConfigError` for windows that the model cannot read, or that leave out tokens."""
    problems = []
    if context > n_ctx:
        problems.append(f"--context must be at most {n_ctx}, the model's, not {context}")
    if command.stride is not None and command.stride > context:
        problems.append(f"--stride must be at most {context}, the window, not {command.stride}")
    if problems:
        raise ConfigError(problems)

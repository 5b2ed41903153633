"""Measure a model: `python -m gptjax.evaluate --run RUN --on perplexity --data FILE`.

`--compare RUN RUN ...` shows runs side by side.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax
from gptjax.config.origins import flag_of
from gptjax.evaluation.options import (
    LM_EVAL,
    EvaluateCommand,
    check_context,
    check_flags,
    idle_flags,
)
from gptjax.evaluation.registry import EVALUATIONS


def evaluate(argv: Sequence[str]) -> int:
    """Load a model, measure it, print the table and write the JSON file."""
    at = argv.index(LM_EVAL) if LM_EVAL in argv else len(argv)
    command, words = parse(EvaluateCommand, argv[:at], "python -m gptjax.evaluate"), argv[at + 1 :]
    is_harness = at < len(argv)
    check_flags(command, is_harness)
    if command.compare:
        return _compare(command)
    evaluation = EVALUATIONS[command.on]
    if command.replay is None and (idle := " and ".join(map(flag_of, idle_flags(command)))):
        print(f"note: {command.on} does not read {idle}, which has no effect", file=sys.stderr)
    import_jax()

    from gptjax.cluster.compiler import enable_compilation_cache
    from gptjax.conversion.opening import load_run
    from gptjax.evaluation.report import as_table, conditions, write_json
    from gptjax.evaluation.scoring import Scorer
    from gptjax.evaluation.setting import Setting

    enable_compilation_cache()
    run = load_run(command.run, averaged=command.averaged)
    if command.replay is not None:
        return _replay(run, command.replay, command)
    context = command.context or run.config.context
    check_context(command, context, run.config.model.n_ctx)
    scorer = Scorer(run.config.model, run.params, command.batch, command.dtype, context)
    print(f"{run.origin}, {command.dtype}, context {context}", file=sys.stderr)
    if is_harness:
        from gptjax.evaluation.harness_tasks import run_harness

        return run_harness(run, scorer, command.data, words)
    given: dict[str, Any] = {f: getattr(command, f) for f in evaluation.reads}
    setting, began = Setting(run, scorer, command.data, command.limit, **given), time.perf_counter()
    figures = evaluation.measure(setting)
    seconds = time.perf_counter() - began
    print(f"{command.on} on {command.data}, {seconds:,.1f} s")
    print(as_table(figures, evaluation.scored))
    if command.json is not None:
        write_json(command.json, figures, conditions(setting, command.on, seconds))
    return 0


def _replay(run: Any, step: int, command: EvaluateCommand) -> int:
    """Print the rows of a step, and write all of them to the JSON file."""
    from gptjax.evaluation.replay import as_lines, mean_loss, write_replay
    from gptjax.training.replaying import replay

    rows = replay(run, step, command.batch, command.dtype)
    loss = f"loss {mean_loss(rows):.4f} by the {run.origin}"
    print(f"step {step:,}: {len(rows):,} rows, {loss}")
    width = shutil.get_terminal_size((100, 24)).columns
    print("\n".join(as_lines(rows[: command.limit], width)))
    if command.json is not None:
        write_replay(command.json, step, run.origin, rows)
    return 0


def _compare(command: EvaluateCommand) -> int:
    """Print a table of runs, and write the page that shows them side by side."""
    from gptjax.runs.comparing import HEADER, SEEDS_HEADER, as_text, read_side_by_side

    comparison, path = read_side_by_side(command.compare), command.out or Path("compare.html")
    print(as_text(HEADER, comparison.table()))
    if seeds := comparison.seeds():
        print(f"\n{as_text(SEEDS_HEADER, seeds)}")
    comparison.write(path)
    print(f"\ncurves side by side in {path}")
    return 0


if __name__ == "__main__":
    main(evaluate)

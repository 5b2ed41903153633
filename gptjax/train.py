"""Train a model: `python -m gptjax.train --config NAME`, again to resume."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax.cli import ConfigCommand, main, parse_config

IMPORTED = time.perf_counter()


@dataclass(frozen=True)
class TrainCommand(ConfigCommand):
    """Train a model as a config file says; the same command again resumes the run."""

    run_dir: Path | None = None
    """Directory of the run; None means runs/CONFIG_NAME."""
    fresh: bool = False
    """Start over; an older run in the same directory is kept under another name."""


def train(argv: Sequence[str]) -> int:
    """Parse, prepare embedded data if there is none yet, and fit."""
    command = parse_config(TrainCommand, argv, "python -m gptjax.train")
    run_path = command.run_dir or Path("runs") / Path(command.config).stem

    from gptjax.budget import parameter_count
    from gptjax.data.manifest import is_prepared
    from gptjax.data.preparation import how_to_prepare, prepare_with_progress
    from gptjax.errors import UserError
    from gptjax.training.compiler import (
        divide_processor,
        enable_compilation_cache,
        keep_freed_memory,
    )
    from gptjax.training.loop import fit
    from gptjax.training.profile import Startup, process_began

    startup = Startup(process_began(IMPORTED))
    startup.end("imports")
    run, data_dir = command.run, Path(command.data.path)
    if not run.data.mixture and not is_prepared(data_dir):
        if run.data.source is None:
            raise UserError(
                f"there is no prepared data in {data_dir}: run "
                f"`{how_to_prepare(command.config, run)}` first"
            )
        prepare_with_progress(run.data)
        startup.end("preparation")
    divide_processor(run.train.cpu_devices)
    enable_compilation_cache()
    keep_freed_memory(parameter_count(run.model))
    return fit(run, run_path, command.fresh, startup)


if __name__ == "__main__":
    main(train)

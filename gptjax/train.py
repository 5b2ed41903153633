"""Train a model: `python -m gptjax.train --config NAME`, again to resume."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptjax.base.errors import StorageError, UserError
from gptjax.cli import ConfigCommand, main, origins_of, parse_config
from gptjax.cluster.environment import check_training, claim_memory, import_jax
from gptjax.cluster.stop import StopRequest
from gptjax.config.effects import Surroundings, note_without_effect


@dataclass(frozen=True)
class TrainCommand(ConfigCommand):
    """Train the model of a config file; run the same command again to resume."""

    run_dir: Path | None = None
    """Directory of the run; None means runs/CONFIG_NAME."""
    fresh: bool = False
    """Start over; an older run in the same directory is kept under another name."""
    report: bool = False
    """Print versions, devices, config and the end of the log, to send with a question."""
    coordinator: str | None = None
    """HOST:PORT of process 0 in a run of several processes; None asks the launcher (Slurm, Open
    MPI, Kubernetes, SkyPilot)."""
    processes: int | None = None
    """Number of processes on all nodes; None asks the launcher, and is 1 without one."""
    process: int | None = None
    """Number of this process, from 0."""

    @property
    def run_path(self) -> Path:
        """The run's directory."""
        return self.run_dir or Path("runs") / Path(self.config).stem

    @property
    def begun(self) -> Path | None:
        """The run's directory, unless it starts over."""
        return None if self.fresh else self.run_path


def train(argv: Sequence[str]) -> int:
    """Parse the flags, prepare the config's own text if it has one, meet the others, and train."""
    began = time.perf_counter()
    is_report = "--report" in argv
    command = parse_config(TrainCommand, argv, "python -m gptjax.train", required=not is_report)
    run_path = command.run_path
    if command.report:
        from gptjax.runs.report import run_report

        is_named = command.config or command.run_dir
        for line in run_report(run_path if is_named else None, command.run):
            print(line)
        return 0
    origins = origins_of(command, argv)
    # an interrupt during the import of jax can be lost, or crash the process
    with StopRequest(answer="stopping before anything began") as stop:
        claim_memory()
        import_jax(deterministic=command.run.train.deterministic)
        import jax

        from gptjax.cluster.agreement import BUG, exit_process, require_equal_devices
        from gptjax.cluster.compiler import enable_compilation_cache, start_devices
        from gptjax.cluster.processes import find_launch, initialise
        from gptjax.data.manifest import is_prepared
        from gptjax.model.size import parameter_count
        from gptjax.preparation.pipeline import prepare_with_progress, require_own_text
        from gptjax.runs.trace import Startup, process_began
        from gptjax.training.fit import fit
        from gptjax.training.tasks import task_of
    if stop:
        return stop.exit_code

    check_training()
    startup = Startup(process_began(began) if __name__ == "__main__" else began)
    startup.end("imports")
    launch = find_launch(os.environ, command.coordinator, command.processes, command.process)
    run, data_dir = command.run, Path(command.data.path)
    devices = run.train.cpu_devices, parameter_count(run.model), run.train.stall_seconds
    if launch is None:  # report a mistake before preparing the data
        start_devices(*devices)
    is_missing = task_of(run).reads_shards and not run.data.mixture and not is_prepared(data_dir)
    if is_missing:
        with origins.explained():
            require_own_text(command.config, run)
    if is_missing and (launch is None or launch.process == 0):
        prepare_with_progress(run.data)
        startup.end("preparation")
    try:
        if launch is not None:
            initialise(launch)
            startup.end("meeting")
            start_devices(*devices, launch.process)
        enable_compilation_cache()
        require_equal_devices()
        here = Surroundings(not is_missing, jax.default_backend(), jax.local_device_count())
        notes = note_without_effect(run, origins.typed, here)
        with origins.explained():
            return fit(run, run_path, command.fresh, startup, notes)
    except BaseException as error:
        if launch is not None:
            exit_process(error, launch.process)
        if not isinstance(error, Exception) or isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and (known := StorageError.of(error)):
            raise known from error
        traceback.print_exc()
        sys.stderr.flush()
        return BUG


if __name__ == "__main__":
    main(train)

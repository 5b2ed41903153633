"""Measures where a run's time goes: its start-up by phase, and a trace of chosen steps."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gptjax.config.names import profile_window

LONGEST_IMPORT = 600.0  # seconds; a process that is older did something else first


def process_began(known: float) -> float:
    """Return the value of `time.perf_counter()` at the moment this process began.

    Linux knows it (proc(5): field 22 of /proc/self/stat, in clock ticks since boot, sleep included;
    psutil gives only whole seconds). Elsewhere, or if the value makes no sense, the result is
    `known`, a moment soon after.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        born = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        began = time.perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - born)
    except (OSError, AttributeError, ValueError, LookupError):
        return known
    return began if known - LONGEST_IMPORT < began < known else known


class Startup:
    """The time from the start of a process to the end of its first step, in seconds by phase."""

    def __init__(self, began: float):
        """Begin the first phase at `began`, by `time.perf_counter()`."""
        self.began = self._last = began
        self._phases: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._is_told = False

    def end(self, phase: str, note: str = "") -> None:
        """Count the time since the last call as this phase's; several calls add up."""
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._notes[phase] = f" ({note})" if note else ""
        self._last = now

    def finish(self, say: Callable[[str], None]) -> None:
        """End the last phase, the first step, and report all phases; later calls do nothing."""
        if self._is_told:
            return
        self._is_told = True
        self.end("first step")
        parts = [f"{name} {t:.1f} s{self._notes[name]}" for name, t in self._phases.items()]
        say(f"start-up  {', '.join(parts)}; {sum(self._phases.values()):.1f} s in all")


class StepTrace:
    """A trace of COUNT steps after step STEP, for XProf and Perfetto alike."""

    def __init__(self, window: str | None, directory: Path, say: Callable[[str], None]):
        """`window` is STEP:COUNT, or None for no trace; `say` gets messages for the user."""
        steps = profile_window(window) if window is not None else None
        self._first, count = steps or (-1, 0)
        self._last = self._first + count
        self._window, self._directory, self._say = window, directory, say
        self._done: int | None = None  # last traced step, while tracing

    def begin(self, step: int, max_steps: int) -> None:
        """Start at once if the window begins with the run; say which steps will not be traced."""
        if self._window is None:
            return
        if step > self._first or self._first >= max_steps:
            where = f"this start goes from step {step} to {max_steps}"
            self._say(f"note     train.profile {self._window} traces nothing: {where}")
            self._first = -1
        elif self._last > max_steps:
            traced = max_steps - self._first
            self._say(
                f"note     train.profile {self._window} reaches beyond step {max_steps}, the "
                f"last one: {traced} steps will be traced"
            )
        if step == self._first < max_steps:
            self._start(step)

    def annotate(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context in which step `step` is dispatched: it marks the step in a trace."""
        return jax.profiler.StepTraceAnnotation("step", step_num=step)

    def after(self, step: int, result: Any) -> bool:
        """Start or stop the trace if step `step` is an end of the window; returns whether it is.

        `result` is an output of the step. This waits for the device, so that a trace holds whole
        steps and nothing else.
        """
        if self._done is not None:
            self._done = step
        is_start = step == self._first
        is_stop = step == self._last and self._done is not None
        if is_start or is_stop:
            jax.block_until_ready(result)
        if is_start:
            self._start(step)
        if is_stop:
            self.close()
        return is_start or is_stop

    def _start(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each Python call would be an event: slow and useless
        jax.profiler.start_trace(
            self._directory, create_perfetto_trace=True, profiler_options=options
        )
        self._done = step

    def close(self) -> None:
        """Write the trace, if there is one, and say how to look at it."""
        if self._done is None:
            return
        done, self._done = self._done, None
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:  # a run goes on without its trace
            self._say(f"the trace could not be written to {self._directory}: {error}")
            return
        if done == self._first:
            self._say("stopped before the first step of the trace")
            return
        trace = max(self._directory.glob("plugins/profile/*/perfetto_trace.json.gz"), default=None)
        self._say(
            f"traced steps {self._first + 1} to {done}: open {trace} in "
            f"https://ui.perfetto.dev, or `pip install xprof` and `xprof --logdir "
            f"{self._directory}`"
        )

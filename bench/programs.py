"""Runs programs one after the other: each within a time, and a failure does not end the rest."""

import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Plan, Skipped

LEAST_SECONDS = 20  # a program with less time left is not started
FOREVER = 1e6

Program = Callable[[Plan], None]


def run_programs(
    programs: Mapping[str, Program],
    only: tuple[str, ...],
    plan: Plan,
    seconds: float = FOREVER,
    limit: float = FOREVER,
) -> dict[str, dict[str, Any]]:
    """Run all, or those in `only`, within `seconds`, each within `limit`; return every outcome.

    If one fails or runs over its limit, the rest go on; none starts with too little time left.
    """
    if unknown := set(only) - set(programs):
        names = f"{', '.join(sorted(unknown))}: expected of {', '.join(programs)}"
        sys.exit(f"no program {names}")
    outcomes: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _run_over)
    for name in only or programs:
        started = time.monotonic()
        left, outcome = deadline - started, "done"
        if left < LEAST_SECONDS:
            outcomes[name] = {"outcome": f"skipped: {left:.0f} s were left", "seconds": 0.0}
            continue
        print(f"{name} ...", flush=True)
        try:
            signal.setitimer(signal.ITIMER_REAL, min(left, limit))
            with tempfile.TemporaryDirectory(dir=plan.scratch) as own:
                programs[name](replace(plan, scratch=Path(own)))
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except Exception as error:
            traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        outcomes[name] = {"outcome": outcome, "seconds": time.monotonic() - started}
    return outcomes


def _run_over(*_: object) -> None:
    raise TimeoutError("its time was up")


def report_outcomes(outcomes: dict[str, dict[str, Any]]) -> int:
    """Name the programs that are not done; 1 if any failed."""
    for name, outcome in outcomes.items():
        if outcome["outcome"] != "done":
            print(f"{name} {outcome['outcome']}", file=sys.stderr)
    return int(any(outcome["outcome"].startswith("failed") for outcome in outcomes.values()))

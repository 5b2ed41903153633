"""From a user's Enter to the first update: whole processes, with and without compiled programs."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness import Figures, plain_environment

POLL_SECONDS = 0.005


def fresh_environment(cache: Path) -> dict[str, str]:
    """A user's environment in which the train verb keeps its compiled programs below `cache`."""
    environment = {**plain_environment(), "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would be preferred
    return environment


def first_update(arguments: list[str], run_dir: Path, cache: Path) -> Figures:
    """Train one update in a fresh run directory, with compiled programs kept in `cache`.

    `seconds` go from the start of the process to the first row of metrics.jsonl, `reached` to where
    the first update begins, as the trainer's own line says, and `until_exit` to the end of the
    process, the first checkpoint included. Raises `RuntimeError` where the process fails.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    environment = fresh_environment(cache)
    once = ["--train.max-steps", "1", "--train.eval-every-steps", "0"]
    command = [sys.executable, "-m", "gptjax.train", *arguments, "--run-dir", str(run_dir), *once]
    rows = run_dir / "metrics.jsonl"
    output = run_dir.with_suffix(".output")
    with output.open("w+b") as said:
        started, first = time.perf_counter(), None
        process = subprocess.Popen(
            [*command, "--train.sample-every-steps", "0"],
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            if first is None and rows.exists() and os.path.getsize(rows):
                first = time.perf_counter() - started
            time.sleep(POLL_SECONDS)
        ended = time.perf_counter() - started
    words = output.read_text(errors="replace").strip()
    if process.returncode or not rows.exists():
        raise RuntimeError(f"{' '.join(command)} failed: {words[-2000:]}")
    (update,) = re.findall(r"first update ([0-9.]+) s;", words)
    done = ended if first is None else first
    return {"seconds": done, "reached": done - float(update), "until_exit": ended}


def cold_and_warm(arguments: list[str], directory: Path) -> dict[str, Figures]:
    """The same command twice, first with an empty cache of compiled programs."""
    cache = directory / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    run_dir = directory / "run"
    return {kind: first_update(arguments, run_dir, cache) for kind in ("cold", "warm")}


def floor() -> Figures:
    """What no trainer on jax can be below: import it, find the devices, compile one addition."""
    script = (
        "import jax, jax.numpy as jnp; jax.jit(lambda x: x + 1)(jnp.ones(8)).block_until_ready()"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - started}

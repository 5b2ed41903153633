"""The program `serve`: a live server under many clients, and with one request at a time.

The server is `python -m gptjax.serve` in its own process, on 127.0.0.1, with random weights. Every
client asks again and again for one of a few texts with a seed, whose answers are known from asking
alone; a quarter of the requests are streams that the client leaves in the middle.
"""

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import Plan, Report, Skipped, plain_environment
from shapes import SMALL, TOY, Shape, gpt2, model_config

SLOTS = 8
RUNNING = re.compile(r"^gptjax_running_sequences\{.*\} (\S+)$", re.MULTILINE)
READY = re.compile(r"serving \S+ at (\S+)")


@dataclass
class Crowd:
    """What the clients of a while saw together."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    first_seconds: list[float] = field(default_factory=list)
    wrong: int = 0


def serve(plan: Plan) -> None:
    """Tokens per second of a loaded server over those of one request after the other."""
    try:
        import httpx2  # noqa: F401 - comes with the openai client
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed: pip install -e '.[dev,serve]'") from error
    cases = [
        ("small", replace(SMALL, n_ctx=256, n_vocab=257), 50, 60.0, 32),
        ("gpt2_124m", replace(gpt2("124M", 256, 1), n_vocab=257), 50, 60.0, 32),
    ]
    if plan.quick:
        cases = [("toy", replace(TOY, n_ctx=128, n_vocab=257), 5, 2.0, 8)]
    report = Report(
        "serve",
        f"A server with {SLOTS} slots: tokens/s of whole answers over HTTP",
        ("model", "under load", "one at a time", "ratio"),
    )
    for name, shape, clients, seconds, longest in cases:
        directory = write_model(shape, plan.scratch / name)
        figures = measure(directory, clients, seconds, longest)
        ratio = figures["tokens_per_second"]["load"] / figures["tokens_per_second"]["alone"]
        report.figures[name], report.ratio[name] = figures, {"load over alone": ratio}
        rates = [f"{figures['tokens_per_second'][side]:,.1f}" for side in ("load", "alone")]
        report.rows.append((f"{name}: {shape}; {clients} clients", *rates, f"{ratio:.2f}"))
        low, high = figures["mebibytes"]
        report.note(
            f"{name}: {figures['requests']}; first token after {figures['first_seconds_p50']:.2f} "
            f"s (median) and {figures['first_seconds_p95']:.2f} s (95%); memory {low:,.0f} to "
            f"{high:,.0f} MiB; wrong answers {figures['wrong_answers']}, slots in use at the end "
            f"{figures['slots_in_use']:.0f}, exit code after SIGTERM {figures['exit_code']}"
        )
    report.publish(plan.out)


def write_model(shape: Shape, out: Path) -> Path:
    """A Hugging Face directory of random weights with the tokenizer of bytes."""
    import jax
    import numpy as np

    from gptjax.base.tree import named_leaves
    from gptjax.conversion.huggingface_writing import write_huggingface
    from gptjax.conversion.weights import Weights
    from gptjax.model.gpt import init_params
    from gptjax.tokenizers.plain import ByteTokenizer

    model = model_config(shape)
    arrays = named_leaves(init_params(model, jax.random.key(0)))
    host = {name: np.asarray(array) for name, array in arrays.items()}
    write_huggingface(Weights(model, host, ByteTokenizer(), "random weights"), out)
    return out


def measure(directory: Path, clients: int, seconds: float, longest: int) -> dict[str, Any]:
    """Start a server, ask it one by one and all at once, and end it."""
    command = [sys.executable, "-m", "gptjax.serve", "--run", str(directory), "--port", "0"]
    command += ["--max-batch", str(SLOTS), "--max-queue", str(2 * SLOTS)]
    log = (directory.parent / "server.log").open("w")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=plain_environment()
    ) as server:
        try:
            assert server.stdout is not None
            ready = READY.search(server.stdout.readline())
            if ready is None:
                raise RuntimeError((directory.parent / "server.log").read_text()[-2000:])
            return asyncio.run(_ask(server, ready[1], clients, seconds, longest))
        finally:
            server.kill()


async def _ask(
    server: subprocess.Popen, url: str, clients: int, seconds: float, longest: int
) -> dict[str, Any]:
    import httpx2 as httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        chance = random.Random(0)
        known: list[tuple[dict[str, Any], str]] = []
        for seed in range(20):
            length = chance.randint(1, 2 * longest)
            prompt = "".join(chance.choices("abc def\n", k=length))
            body = {"prompt": prompt, "max_tokens": chance.randint(1, longest), "seed": seed}
            known.append((body, await _text(http, body)))
        alone, end = Crowd(), time.monotonic() + seconds / 3
        began = time.perf_counter()
        await _client(http, chance, known, alone, end, leaves=False)
        alone_rate = alone.tokens / (time.perf_counter() - began)
        before = _mebibytes(server.pid)
        load, end = Crowd(), time.monotonic() + seconds
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(_client(http, random.Random(number), known, load, end))
        load_rate = load.tokens / (time.perf_counter() - began)
        for _ in range(100):
            metrics = (await http.get("/metrics")).text
            in_use = float(RUNNING.findall(metrics)[0])
            if not in_use:
                break
            await asyncio.sleep(0.1)
        after = _mebibytes(server.pid)
    server.send_signal(signal.SIGTERM)
    first = sorted(load.first_seconds) or [0.0]
    return {
        "tokens_per_second": {"load": load_rate, "alone": alone_rate},
        "requests": dict(load.counts),
        "wrong_answers": alone.wrong + load.wrong,
        "first_seconds_p50": statistics.median(first),
        "first_seconds_p95": first[int(0.95 * (len(first) - 1))],
        "mebibytes": (before, after),
        "slots_in_use": in_use,
        "exit_code": server.wait(60),
    }


async def _text(http: Any, body: dict[str, Any]) -> str:
    answer = await http.post("/v1/completions", json=body)
    return answer.raise_for_status().json()["choices"][0]["text"]


async def _client(
    http: Any,
    chance: random.Random,
    known: list[tuple[dict[str, Any], str]],
    crowd: Crowd,
    end: float,
    leaves: bool = True,
) -> None:
    """Stream one text after the other; compare those that are read to their end."""
    while time.monotonic() < end:
        body, expected = chance.choice(known)
        is_leaving, text, tokens = leaves and chance.random() < 0.25, "", 0
        options = {"stream": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        async with http.stream("POST", "/v1/completions", json=body | options) as response:
            if response.status_code == 429:
                crowd.counts["refused"] += 1
                await asyncio.sleep(chance.random())
                continue
            response.raise_for_status()
            first = None
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                first = first or time.perf_counter() - began
                if is_leaving and chance.random() < 0.3:
                    break
                piece = json.loads(line[6:])
                text += "".join(choice["text"] for choice in piece["choices"])
                tokens = (piece.get("usage") or {}).get("completion_tokens", 0)
            else:
                crowd.tokens += tokens
                crowd.wrong += text != expected
                crowd.first_seconds.append(first or 0.0)
                crowd.counts["answered"] += 1
                continue
        crowd.counts["left"] += 1


def _mebibytes(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

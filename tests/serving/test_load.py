"""Fifty clients at once, some of which leave in the middle: nobody notices the others."""

import asyncio
import json
import random
import re
import signal
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from served import Served, served

pytestmark = pytest.mark.slow
CLIENTS, SECONDS, LONGEST = 50, 20.0, 48


def requests() -> list[dict]:
    """Different requests whose seed decides the answer."""
    chance = random.Random(0)
    return [
        {
            "prompt": "".join(chance.choices("abc def\n", k=chance.randint(0, 60))),
            "max_tokens": chance.randint(1, LONGEST),
            "temperature": chance.choice([0, 0.7, 1.0]),
            "top_k": chance.choice([0, 10]),
            "top_p": chance.choice([1.0, 0.9]),
            "repetition_penalty": chance.choice([1.0, 1.3]),
            "stop": chance.choice([None, "e", ["th", "\n"]]),
            "logprobs": chance.choice([None, None, 2]),
            "n": chance.choice([1, 1, 1, 3]),
            "seed": seed,
        }
        for seed in range(40)
    ]


def choices(body: dict) -> list[tuple]:
    """What an answer says, without the floats, which may differ in their last bits."""
    return [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]]


def memory_of(server: Served) -> float:
    """Resident memory of the server's process, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


async def client(
    http: httpx.AsyncClient, chance: random.Random, alone: list, counts: dict, end: float
) -> None:
    """Ask again and again: for a whole answer, for a stream, or for one that it leaves."""
    while time.monotonic() < end:
        body, expected = chance.choice(alone)
        way = chance.choice(["whole", "stream", "leave"])
        body = body | {"stream": way != "whole"}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                way = "refused"
                await asyncio.sleep(chance.random() * 0.2)
            elif way == "whole":
                assert choices(json.loads(await response.aread())) == expected
            else:
                texts = [""] * len(expected)
                async for line in response.aiter_lines():
                    if way == "leave" and chance.random() < 0.3:
                        break
                    if line.startswith("data: {"):
                        piece = json.loads(line[6:])["choices"][0]
                        texts[piece["index"]] += piece["text"]
                else:
                    assert texts == [text for _, text, _ in expected]
            assert response.status_code == (429 if way == "refused" else 200)
        counts[way] += 1


async def crowd(url: str, seconds: float, alone: list, counts: dict) -> None:
    """All clients for a while."""
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    http = httpx.AsyncClient(base_url=url, timeout=60, limits=limits)
    async with http, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            chance = random.Random(number + int(seconds * 1000))
            group.create_task(client(http, chance, alone, counts, end))


def test_fifty_clients_are_answered_as_if_alone(trained_run):
    with (
        served(trained_run, "--max-batch", 8, "--max-queue", 24) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):

        def answer(body: dict) -> list[tuple]:
            return choices(http.post("/v1/completions", json=body).json())

        alone = [(body, answer(body)) for body in requests()]
        counts = dict.fromkeys(("whole", "stream", "leave", "refused"), 0)
        asyncio.run(crowd(server.url, SECONDS / 4, alone, counts))
        before = memory_of(server)
        asyncio.run(crowd(server.url, SECONDS, alone, counts))
        print(counts)
        assert min(counts.values()) > 10, counts
        end = time.monotonic() + 10
        idle, counts_of = 'sequences{model="run"} 0.0', r'gptjax_requests_total\{model="run",'
        while f"gptjax_running_{idle}" not in (text := http.get("/metrics").text):
            assert time.monotonic() < end
        assert f"gptjax_waiting_{idle}" in text
        outcomes = dict(re.findall(counts_of + r'outcome="(\w+)"\} (\S+)', text))
        assert float(outcomes["refused"]) == counts["refused"]
        assert float(outcomes["cancelled"]) > 10
        assert outcomes["failed"] == outcomes["timed_out"] == outcomes["invalid"] == "0.0"
        assert memory_of(server) < before + 30, "memory of the server grows"
        assert [answer(body) for body, _ in alone] == [expected for _, expected in alone]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0

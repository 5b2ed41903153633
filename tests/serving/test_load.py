"""Fifty clients at once, some of which leave in the middle: nobody notices the others."""

import asyncio
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


async def client(url: str, chance: random.Random, alone: list, counts: dict, end: float) -> None:
    """Ask again and again: for a whole answer, for a stream, or for one that it leaves."""
    async with httpx.AsyncClient(timeout=60) as http:
        while time.monotonic() < end:
            body, expected = chance.choice(alone)
            way = chance.choice(["whole", "stream", "leave"])
            if way == "whole":
                response = await http.post(url, json=body)
                if response.status_code == 200:
                    assert choices(response.json()) == expected
                else:
                    assert response.status_code == 429
            else:
                async with http.stream("POST", url, json=body | {"stream": True}) as response:
                    texts = dict.fromkeys(range(body["n"]), "")
                    async for line in response.aiter_lines():
                        if response.status_code != 200 or (
                            way == "leave" and chance.random() < 0.3
                        ):
                            break
                        if line.startswith("data: {"):
                            piece = httpx.Response(200, content=line[6:]).json()["choices"][0]
                            texts[piece["index"]] += piece["text"]
                    else:
                        assert [texts[i] for i, _, _ in expected] == [t for _, t, _ in expected]
                    assert response.status_code in (200, 429)
            if response.status_code == 429:
                counts["refused"] += 1
                await asyncio.sleep(chance.random() * 0.2)
            else:
                counts[way] += 1


def test_fifty_clients_are_answered_as_if_alone(trained_run):
    with served(trained_run, "--max-batch", 8, "--max-queue", 24) as server:
        url = f"{server.url}/v1/completions"
        alone = [
            (body, choices(httpx.post(url, json=body, timeout=60).json())) for body in requests()
        ]
        counts = dict.fromkeys(("whole", "stream", "leave", "refused"), 0)

        async def crowd(seconds: float) -> None:
            end = time.monotonic() + seconds
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    chance = random.Random(number + int(seconds * 1000))
                    group.create_task(client(url, chance, alone, counts, end))

        asyncio.run(crowd(SECONDS / 4))
        before = memory_of(server)
        asyncio.run(crowd(SECONDS))
        assert min(counts.values()) > 10, counts
        end = time.monotonic() + 10
        while "gptjax_running_sequences 0.0" not in (
            text := httpx.get(f"{server.url}/metrics").text
        ):
            assert time.monotonic() < end
        assert "gptjax_waiting_sequences 0.0" in text
        outcomes = dict(re.findall(r'gptjax_requests_total\{outcome="(\w+)"\} (\S+)', text))
        assert float(outcomes["refused"]) == counts["refused"]
        assert float(outcomes["cancelled"]) > 10
        assert outcomes["failed"] == outcomes["timed_out"] == outcomes["invalid"] == "0.0"
        assert memory_of(server) < before + 30, "memory of the server grows"
        assert choices(httpx.post(url, json=alone[0][0]).json()) == alone[0][1]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        print(counts)

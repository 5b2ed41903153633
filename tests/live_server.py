"""A server of a random small model, alive in this process on 127.0.0.1."""

import contextlib
import string
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import httpx2 as httpx
import jax
import numpy as np

from gptjax.config import ModelConfig
from gptjax.generation.engine import Engine
from gptjax.model.gpt import GPT, init_params
from gptjax.serving.api import create_app
from gptjax.serving.listening import address_of, bind
from gptjax.serving.metrics import ServingMetrics
from gptjax.serving.protocol import Limits
from gptjax.serving.scheduler import Scheduler
from gptjax.serving.service import ServedModel, Service
from gptjax.tokenizers.plain import CharTokenizer

TOKENIZER = CharTokenizer(string.ascii_letters + " .,!?<>\"'éñ日#:\n")  # any of its ids is text
SHAPE = ModelConfig(
    n_layer=2, n_head=2, n_embd=16, n_ctx=64, n_vocab=TOKENIZER.n_vocab, dtype="float32"
)


def random_params():
    """Parameters with opinions, by which end-of-text is never drawn, so lengths are known."""
    params = jax.tree.map(lambda x: 6 * x, init_params(SHAPE, jax.random.key(0)))
    table, bias = params["wte"]["embedding"], params["ln_f"]["bias"]
    table = table.at[TOKENIZER.eot_id].set(0).at[TOKENIZER.eot_id, 0].set(-10)
    return {
        **params,
        "wte": {"embedding": table},
        "ln_f": {**params["ln_f"], "bias": bias.at[0].set(10)},
    }


def all_logprobs(params, tokens: list[int]) -> np.ndarray:
    """Log-probabilities [T, V] of one full forward, float64."""
    row = np.zeros((1, SHAPE.n_ctx), np.int32)
    row[0, : len(tokens)] = tokens
    logits = np.asarray(_forward({"params": params}, row), np.float64)[
        0, : len(tokens), : TOKENIZER.n_vocab
    ]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


_forward = jax.jit(GPT(SHAPE).apply)


class HeldEngine(Engine):
    """An engine whose calls of the device wait, for a test that needs the time between them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.gate.set()
        self.steps: list[int] = []
        self.error: Exception | None = None

    def decode(self, steps: int):
        """Wait for the gate; one token a call, so that nothing is fast."""
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.steps.append(steps)
        return super().decode(1)


@cache
def held_engine() -> HeldEngine:
    """The engine of two slots that all tests share, since each one compiles its programs."""
    return HeldEngine(SHAPE, random_params(), capacity=2)


@dataclass
class LiveServer:
    """A server that answers."""

    url: str
    http: httpx.Client
    engine: HeldEngine
    scheduler: Scheduler
    metrics: ServingMetrics

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        value = self.metrics.registry.get_sample_value(name, {"model": "tiny", **labels})
        assert value is not None, name
        return value

    def wait_idle(self, seconds: float = 20) -> None:
        """Wait until every slot is free and nothing waits."""
        wait_until(lambda: self.scheduler.is_idle, seconds)
        assert len(self.engine.free) == self.engine.capacity


def wait_until(condition, seconds: float = 20) -> None:
    """Wait for a condition; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def make_scheduler(
    engine: Engine, max_queue: int = 4, timeout: float = 60.0, stop_token: int = TOKENIZER.eot_id
) -> Scheduler:
    """A scheduler that works; the caller stops it."""
    scheduler = Scheduler(engine, (stop_token,), max_queue, timeout, ServingMetrics().of("tiny"))
    scheduler.start()
    return scheduler


@contextlib.contextmanager
def live_server(
    engine: HeldEngine,
    max_queue: int = 4,
    timeout: float = 60.0,
    key: str | None = None,
    stop_token: int = TOKENIZER.eot_id,
    beside: Mapping[str, Engine] | None = None,
    **fields,
) -> Iterator[LiveServer]:
    """Serve until the end of the block; `fields` are those of the `ServedModel` tiny.

    `beside` are engines of further models under their names.
    """
    import uvicorn

    metrics, models = ServingMetrics(), []
    for name, own in {"tiny": engine, **(beside or {})}.items():
        scheduler = Scheduler(own, (stop_token,), max_queue, timeout, metrics.of(name))
        limits = Limits(SHAPE.n_ctx, scheduler.max_sequences, TOKENIZER.n_vocab)
        about = (SHAPE, TOKENIZER, scheduler, metrics.of(name), limits, own.context)
        models.append(ServedModel(name, *about))
    scheduler, models[0] = models[0].scheduler, replace(models[0], **fields)
    service = Service(models, metrics, key)
    bound = bind("127.0.0.1", 0, None)
    config = uvicorn.Config(
        create_app(service), http="h11", lifespan="off", log_level="error",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    service.start()
    thread.start()
    wait_until(lambda: server.started)
    try:
        with httpx.Client(base_url=address_of(bound), timeout=60) as http:
            yield LiveServer(address_of(bound), http, engine, scheduler, metrics)
    finally:
        engine.gate.set()
        service.stop()
        server.should_exit = True
        thread.join()

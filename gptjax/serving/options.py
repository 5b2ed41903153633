"""The flags of `python -m gptjax.serve`, and what can be wrong with them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptjax.base.errors import ConfigError
from gptjax.config.origins import flag_of

KEY_VARIABLE = "GPTJAX_API_KEY"
QUEUE_FOR_EACH_SLOT = 4


@dataclass(frozen=True)
class ServeCommand:
    """Serve a model to clients of OpenAI's API: /v1/completions, /v1/chat/completions (of a model
    that is tuned on instructions), /v1/models, /health, /metrics.

    Prints one line with its address when it is ready. Ctrl-C or SIGTERM finishes what was accepted.
    """

    run: str = "runs/quickstart"
    """RUN, RUN@best (lowest validation loss, the default), RUN@latest, RUN@STEP, or a Hugging Face
    directory."""
    adapters: tuple[str, ...] = ()
    """Runs of low-rank adapters (LoRA) on the model of --run, each NAME=RUN, to serve beside it:
    requests choose by `model`. The model's own parameters are in memory once."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own need an API key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = None
    """Key that clients must send; GPTJAX_API_KEY in the environment does the same, and unlike a
    flag it does not show in the list of processes."""
    max_batch: int = 8
    """Sequences that are generated at once, of each model."""
    max_queue: int | None = None
    """Sequences that may wait; beyond it the answer is 429. The default is 4 for each of
    --max-batch."""
    max_tokens: int | None = None
    """Longest continuation that a request may ask for; the default is --context."""
    context: int | None = None
    """Most tokens of a prompt with its continuation; the default is the model's."""
    request_timeout: float = 600.0
    """Seconds from the arrival of a request to its end, at most."""
    grace: float = 30.0
    """Seconds that accepted requests have after SIGTERM."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and matrix products."""
    attention_maps: bool = False
    """Answer /v1/attention, with which the page shows where a head looks."""


def api_key(command: ServeCommand) -> str | None:
    """The key of the flag, or of the environment; None if there is none."""
    return os.environ.get(KEY_VARIABLE) if command.api_key is None else command.api_key


def named_adapters(command: ServeCommand) -> dict[str, str]:
    """The run of each adapter under its name."""
    parts = (given.partition("=") for given in command.adapters)
    return {name: run for name, _, run in parts}


def queue_length(command: ServeCommand) -> int:
    """Sequences that may wait."""
    given = command.max_queue
    return QUEUE_FOR_EACH_SLOT * command.max_batch if given is None else given


def check_serve_flags(command: ServeCommand) -> None:
    """Raise one `ConfigError` with every problem of the flags."""
    problems = []
    for name, least in (("max_batch", 1), ("max_queue", 0), ("max_tokens", 1), ("context", 1)):
        value = getattr(command, name)
        if value is not None and value < least:
            problems.append(f"{flag_of(name)} must be at least {least}, not {value}")
    if not 0 <= command.port < 2**16:
        problems.append(f"--port must be in [0, 65535], not {command.port}")
    if not 0 < command.request_timeout < float("inf"):
        problems.append(f"--request-timeout must be above 0, not {command.request_timeout}")
    if not 0 <= command.grace < float("inf"):
        problems.append(f"--grace must be 0 or more, not {command.grace}")
    problems += _adapter_problems(command.adapters)
    key = api_key(command)
    if key is not None and not (key.isascii() and key.isprintable() and key.split() == [key]):
        where = KEY_VARIABLE if command.api_key is None else "--api-key"
        problems.append(f"{where} must be printable ASCII characters without blanks")
    if problems:
        raise ConfigError(problems)


def _adapter_problems(adapters: tuple[str, ...]) -> Iterator[str]:
    names = [given.partition("=")[0] for given in adapters]
    for given, name in zip(adapters, names, strict=True):
        if not name or not given.partition("=")[2]:
            yield f"--adapters must be NAME=RUN, such as poet=runs/poet, not {given!r}"
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"--adapters has the name {name!r} twice: each needs a name of its own"


def check_lengths(command: ServeCommand, n_ctx: int) -> None:
    """Raise `ConfigError` for lengths that the model does not have."""
    problems, context = [], command.context or n_ctx
    if context > n_ctx:
        problems.append(f"--context must be at most {n_ctx}, the model's, not {context}")
    elif command.max_tokens is not None and command.max_tokens > context:
        problems.append(f"--max-tokens must be at most {context}, not {command.max_tokens}")
    if problems:
        raise ConfigError(problems)

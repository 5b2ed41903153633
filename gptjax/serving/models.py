"""From the command line to the models of a server: loaded, on the device, each with its queue."""

import sys
from dataclasses import replace

from gptjax.base.errors import UserError
from gptjax.conversion.opening import load_run
from gptjax.generation.engine import Engine
from gptjax.generation.loaded import LoadedRun
from gptjax.generation.text_requests import follows_instructions
from gptjax.serving.adapters import ServedAdapters, load_beside
from gptjax.serving.attention import AttentionMaps
from gptjax.serving.metrics import ServingMetrics
from gptjax.serving.options import (
    ServeCommand,
    api_key,
    check_lengths,
    named_adapters,
    queue_length,
)
from gptjax.serving.protocol import Limits
from gptjax.serving.scheduler import Scheduler
from gptjax.serving.service import ServedModel, Service


def open_models(command: ServeCommand, name: str) -> tuple[Service, list[Engine]]:
    """Load the model of --run under a name, and its adapters; their engines are not warm yet.

    The parameters of the model exist once; adapters have their own leaves and slots alone. Raises
    `UserError` for what cannot be loaded or does not belong together.
    """
    run = load_run(command.run, dtype=command.dtype)
    model, found = run.config.model, named_adapters(command)
    check_lengths(command, model.n_ctx)
    if name in found:
        raise UserError(f"--adapters has the name {name!r}, which is that of --run: take another")
    adapted = {given: load_beside(path, run) for given, path in found.items()}
    maps = None
    keeps = command.attention_maps  # which read the parameters as they are stored
    engine = Engine(
        model, run.params, command.max_batch, command.context, command.dtype, donate=not keeps
    )
    if keeps:
        maps = AttentionMaps(model, run.params, run.tokenizer, engine.context, command.dtype)
    metrics = ServingMetrics()

    def served(name: str, run: LoadedRun | ServedAdapters, engine: Engine) -> ServedModel:
        own = metrics.of(name)
        queue, stop_tokens = queue_length(command), (run.tokenizer.eot_id,)
        scheduler = Scheduler(engine, stop_tokens, queue, command.request_timeout, own)
        longest = command.max_tokens or engine.context
        limits = Limits(longest, scheduler.max_sequences, model.n_vocab or 0)
        about = (name, engine.cfg, run.tokenizer, scheduler, own, limits, engine.context)
        is_chat = follows_instructions(run.config)
        return ServedModel(*about, run.config.instruct.template if is_chat else None)

    models, engines = [replace(served(name, run, engine), attention=maps)], [engine]
    for given, adapter in adapted.items():
        engines.append(engine.adapted(adapter.config.model, adapter.adapters))
        models.append(replace(served(given, adapter, engines[-1]), base=name))
    words = "".join(f", with {given}" for given in adapted)
    print(f"{run.origin}{words}, {command.dtype}; compiling", file=sys.stderr, flush=True)
    return Service(models, metrics, api_key(command)), engines

"""Serve a model over HTTP: `python -m gptjax.serve --run runs/quickstart`."""

import sys
from collections.abc import Sequence

from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax
from gptjax.serving.options import (
    ServeCommand,
    api_key,
    check_lengths,
    check_serve_flags,
    queue_length,
)


def serve(argv: Sequence[str]) -> int:
    """Load a model, compile everything, print the address, and answer until a signal."""
    command = parse(ServeCommand, argv, "python -m gptjax.serve")
    check_serve_flags(command)
    from gptjax.conversion.finding import find_model  # NumPy comes with it
    from gptjax.serving.listening import address_of, bind
    from gptjax.serving.metrics import check_libraries

    check_libraries()
    name, key = find_model(command.run).path.resolve().name, api_key(command)
    bound = bind(command.host, command.port, key)
    import_jax()

    from gptjax.cluster.compiler import enable_compilation_cache
    from gptjax.conversion.opening import load_run
    from gptjax.generation.engine import Engine
    from gptjax.serving.api import create_app
    from gptjax.serving.attention import AttentionMaps
    from gptjax.serving.metrics import ServingMetrics
    from gptjax.serving.protocol import Limits
    from gptjax.serving.scheduler import Scheduler
    from gptjax.serving.server import serve_until_signal
    from gptjax.serving.service import Service

    enable_compilation_cache()
    metrics = ServingMetrics()
    run = load_run(command.run, dtype=command.dtype)
    model = run.config.model
    check_lengths(command, model.n_ctx)
    keeps = command.attention_maps  # which read the parameters as they are stored
    engine = Engine(
        model, run.params, command.max_batch, command.context, command.dtype, donate=not keeps
    )
    scheduler = Scheduler(
        engine, (run.tokenizer.eot_id,), queue_length(command), command.request_timeout, metrics
    )
    longest = command.max_tokens or engine.context
    limits = Limits(longest, scheduler.max_sequences, model.n_vocab or 0)
    maps = None
    if command.attention_maps:
        maps = AttentionMaps(model, run.params, run.tokenizer, engine.context, command.dtype)
    service = Service(
        name, model, run.tokenizer, scheduler, metrics, limits, engine.context, key, maps
    )
    print(f"{run.origin}, {command.dtype}; compiling", file=sys.stderr, flush=True)
    del run  # its parameters, of which the engine has its own
    engine.warm_up()
    scheduler.start()

    def ready() -> None:
        size = f"max batch {command.max_batch}, context {engine.context}"
        print(f"serving {name} at {address_of(bound)} ({size})", flush=True)

    try:
        serve_until_signal(create_app(service), bound, scheduler, command.grace, ready)
    finally:
        scheduler.stop()  # a process that ends beside a thread of the device is aborted
    return 0


if __name__ == "__main__":
    main(serve)

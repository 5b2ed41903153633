"""Serve a model over HTTP: `python -m gptjax.serve --run runs/quickstart`."""

from collections.abc import Sequence

from gptjax.cli import main, parse
from gptjax.cluster.environment import import_jax
from gptjax.serving.options import ServeCommand, api_key, check_serve_flags


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
    from gptjax.serving.api import create_app
    from gptjax.serving.models import open_models
    from gptjax.serving.server import serve_until_signal

    enable_compilation_cache()
    service, engines = open_models(command, name)
    for engine in engines:
        engine.warm_up()
    service.start()

    def ready() -> None:
        names = ", ".join(model.name for model in service.models)
        size = f"max batch {command.max_batch}, context {service.default.context}"
        print(f"serving {names} at {address_of(bound)} ({size})", flush=True)

    try:
        serve_until_signal(create_app(service), bound, service, command.grace, ready)
    finally:
        service.stop()  # a process that ends beside a thread of the device is aborted
    return 0


if __name__ == "__main__":
    main(serve)

"""The server's process: uvicorn on a socket, and the end after a signal."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from gptjax.serving.listening import listen
from gptjax.serving.service import Service

KEEP_ALIVE_SECONDS = 75  # longer than proxies keep their connections, which must close first
CLOSING_SECONDS = 5  # that answers have to reach their clients after everything is drawn
LOOK_SECONDS = 0.02


def serve_until_signal(
    app: Any, bound: socket.socket, service: Service, grace: float, ready: Callable[[], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what was accepted, for `grace` seconds at most.

    `ready` is called when clients can connect. A second signal ends the process at once. Raises
    `UserError` if another process took the port.
    """
    import uvicorn

    listen(bound)
    # no access log: a line a request would cost more than it tells, and /metrics counts them
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_level="error", access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    # uvicorn's own handlers stop listening at once and end the process by the signal
    setattr(server, "capture_signals", contextlib.nullcontext)  # noqa: B010
    asyncio.run(_serve(server, bound, service, grace, ready))


async def _serve(
    server: Any, bound: socket.socket, service: Service, grace: float, ready: Callable[[], None]
) -> None:
    loop, signalled = asyncio.get_running_loop(), asyncio.Event()

    def note(number: signal.Signals) -> None:
        if signalled.is_set():
            os.write(2, f"{number.name}: stopped at once\n".encode())
            os._exit(128 + number)
        os.write(2, f"{number.name}: finishing accepted requests for {grace:g} s\n".encode())
        signalled.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, note, number)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not (server.started or serving.done()):
        await asyncio.sleep(LOOK_SECONDS)
    if server.started:
        ready()
    waiting = asyncio.create_task(signalled.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    service.drain()
    end = loop.time() + grace
    while not service.is_idle and loop.time() < end:
        await asyncio.sleep(LOOK_SECONDS)
    await asyncio.to_thread(service.stop)
    server.should_exit = True
    await serving

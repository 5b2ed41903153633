"""The routes of the server as a Starlette application."""

from typing import Any

from gptjax.serving.chat import begin_chat
from gptjax.serving.exchange import ClientLeft, TextRoute, begin_text, read_body
from gptjax.serving.guard import Guard
from gptjax.serving.page import read_page
from gptjax.serving.protocol import parse_body
from gptjax.serving.refusals import Refusal, broken
from gptjax.serving.service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def create_app(service: Service) -> Any:
    """Make the application. The door has checked that Starlette is installed."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def page(_: Request) -> Response:
        body, headers = read_page()
        return Response(body, headers=headers)

    async def health(_: Request) -> Response:
        healthy = service.is_healthy
        return JSONResponse({"status": "ok" if healthy else "down"}, 200 if healthy else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.as_text(), headers={"content-type": PROMETHEUS})

    async def models(_: Request) -> Response:
        entries = [model.entry() for model in service.models]
        return JSONResponse({"object": "list", "data": entries})

    async def model(request: Request) -> Response:
        return JSONResponse(service.find(request.path_params["name"]).entry())

    async def attention(request: Request) -> Response:
        maps = service.default.attention
        if maps is None:
            message = "this server shows no attention: start it with --attention-maps"
            raise Refusal(404, message, code="no_attention_maps")
        try:
            body = parse_body(await read_body(request.scope, request.receive))
        except ClientLeft:
            return Response()
        return JSONResponse(await maps.answer(body))

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):  # of the router: no such path, or not this method
            where = f"{request.method} {request.scope['path'][:100]}"
            error = Refusal(error.status_code, f"{where}: {error.detail}", headers=error.headers)
        refusal = error if isinstance(error, Refusal) else broken()
        return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", TextRoute(service, begin_text), methods=["POST"]),
            Route("/v1/attention", attention, methods=["POST"]),
            Route("/v1/chat/completions", TextRoute(service, begin_chat), methods=["POST"]),
        ],
        exception_handlers={Refusal: refuse, HTTPException: refuse, Exception: refuse},
    )
    # behind a proxy, the server does not know the address to which it would send the client
    app.router.redirect_slashes = False
    guard = Guard(service.key)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                # the path that the router reads; that of the URL depends on the Host header
                guard.check(scope["path"], request.headers)
            except Refusal as refusal:
                answer = await refuse(request, refusal)
                return await answer(scope, receive, send)
        return await app(scope, receive, send)

    return guarded

"""App: the routes, and what all of them share: keys, bounds of a body, errors in OpenAI's form, counting."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from slmpack.serve.answering import Exchange, chat_exchange, completion_exchange, event_of
from slmpack.serve.bodies import read_json
from slmpack.serve.failures import UNAUTHORIZED, UNAVAILABLE, Failure, failure_of
from slmpack.serve.feedback import write_feedback
from slmpack.serve.keys import Keys
from slmpack.serve.metrics import CONTENT_TYPE, Metrics
from slmpack.serve.mlflow_api import PATH as INVOCATIONS
from slmpack.serve.mlflow_api import error_row, invocation_exchanges, is_stream, written
from slmpack.serve.models import Models
from slmpack.serve.openapi import CHAT_BODY, COMPLETION_BODY, FEEDBACK_BODY, INVOCATION_BODY
from slmpack.serve.options import ServeOptions
from slmpack.serve.served_model import ServedModel
from slmpack.serve.tracing import Tracer
from slmpack.serve.watching import Watcher

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready", "/ping", "/version"})  # probes have no key
IN_USE = "models in use"  # of a request's scope
CLIENT_CLOSED = 499  # nginx's status of a request whose client went away: nobody reads it
Result = TypeVar("Result")


def make_app(models: Models, options: ServeOptions, keys: Keys | None, tracer: Tracer | None = None) -> FastAPI:
    """Return the application that answers for `models`; `tracer` is where answers are traced to."""
    # The pages of documentation would have browsers load scripts from elsewhere.
    app = FastAPI(title="slmpack serve", version=version("slmpack"), docs_url=None, redoc_url=None)
    metrics = Metrics(models, tracer)
    routes = _Routes(models, options, metrics, Watcher(tracer, log_texts=options.log_prompts))
    for path, route, body in (
        ("/v1/chat/completions", routes.chat, CHAT_BODY),
        ("/v1/completions", routes.complete, COMPLETION_BODY),
        (INVOCATIONS, routes.invoke, INVOCATION_BODY),
        ("/v1/feedback", routes.take_feedback, FEEDBACK_BODY),
    ):
        app.add_api_route(path, route, methods=["POST"], response_model=None, openapi_extra=body)
    for path, look in (
        ("/v1/models", routes.list_models), ("/health", routes.health), ("/ready", routes.health),
        ("/ping", routes.health), ("/version", routes.mlflow_version), ("/metrics", routes.show_metrics),
    ):  # fmt: skip
        app.add_api_route(path, look, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_Guard, keys=keys, metrics=metrics)
    return app


class _Routes:
    """The functions behind the paths."""

    def __init__(self, models: Models, options: ServeOptions, metrics: Metrics, watcher: Watcher) -> None:
        self._models, self._options, self._metrics, self._watcher = models, options, metrics, watcher

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        return await self._answered(request, chat_exchange)

    async def complete(self, request: Request) -> Response:
        """Go on with texts."""
        return await self._answered(request, completion_exchange)

    async def invoke(self, request: Request) -> Response:
        """Answer rows in the manner of MLflow's scoring server."""
        body = await self._body(request)
        model = self._found(request, body)
        exchanges = await _unless_gone(request, invocation_exchanges(model, body, self._metrics))
        for exchange in exchanges:
            self._watcher.watch(exchange, body)
        if is_stream(body):
            return await _streamed(request, exchanges[0])
        rows = await _unless_gone(request, _all_whole(exchanges))
        return JSONResponse(written(model, body, rows))

    async def take_feedback(self, request: Request) -> Response:
        """Write what people say of an answer to its trace."""
        return JSONResponse(await write_feedback(await self._body(request), self._watcher.tracer))

    async def list_models(self) -> Response:
        """List the served versions."""
        rows = [
            {"id": model.label, "object": "model", "created": model.located.created, "owned_by": "slmpack",
             "slmpack": model.describe()}
            for model in self._models.all()
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": rows})

    async def health(self) -> Response:
        """Say whether every model's process computes."""
        states = {model.label: "ready" if model.engine.is_ready else "starting" for model in self._models.all()}
        ready = all(state == "ready" for state in states.values())
        return JSONResponse({"status": "ok" if ready else "unavailable", "models": states},
                            status_code=200 if ready else UNAVAILABLE)  # fmt: skip

    async def mlflow_version(self) -> Response:
        """Return the version of MLflow, as its scoring server does."""
        return PlainTextResponse(version("mlflow-skinny"))

    async def show_metrics(self) -> Response:
        """Return the metrics."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _answered(
        self, request: Request, make: Callable[[ServedModel, object, Metrics], Awaitable[Exchange]]
    ) -> Response:
        body = await self._body(request)
        model = self._found(request, body)
        exchange = await _unless_gone(request, make(model, body, self._metrics))
        self._watcher.watch(exchange, body)
        if exchange.extras.stream:
            return await _streamed(request, exchange)
        return JSONResponse(await _unless_gone(request, exchange.whole()))

    def _found(self, request: Request, body: object) -> ServedModel:
        """Return the version that a request names; it is in use until the request is answered to its end."""
        found = body.get("model") if isinstance(body, dict) else None
        model = self._models.find(found if isinstance(found, str) else None)  # other kinds are refused with the fields
        model.users += 1
        request.scope[IN_USE].append(model)
        return model

    async def _body(self, request: Request) -> object:
        return await read_json(request, self._options.body_bytes, self._options.body_seconds)


async def _all_whole(exchanges: list[Exchange]) -> list[dict[str, object]]:
    return list(await asyncio.gather(*(exchange.whole() for exchange in exchanges)))


async def _streamed(request: Request, exchange: Exchange) -> Response:
    """Return the stream, once it has its first event: what is refused before that has a status of its own."""
    events = exchange.events()
    try:
        first = await _unless_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return _Stream(_followed(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


class _Stream(StreamingResponse):
    """Closes what it reads from when it ends, also where it is cancelled while it writes."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Write the events."""
        events: Any = self.body_iterator
        async with aclosing(events):
            await super().__call__(scope, receive, send)


async def _followed(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the events; one that says what broke off the answer takes the place of the end."""
    try:
        yield first
        async for event in events:
            yield event
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        yield event_of(failure.to_row())
    finally:
        await events.aclose()


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return what the work returns, and drop it if the client goes away.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _http_error(request: Request, error: Any) -> Response:
    """Write the framework's own errors, such as a path that is not there, in the same form."""
    failure = Failure(error.status_code, f"{error.detail}; see /openapi.json", headers=dict(error.headers or {}))
    return _written(failure, request.url.path)


def _written(failure: Failure, path: str) -> Response:
    row = error_row(failure) if path == INVOCATIONS else failure.to_row()
    return JSONResponse(row, status_code=failure.status, headers=failure.headers)


class _Guard:
    """Looks at the key, turns what is raised into an answer, and counts."""

    def __init__(self, app: Any, keys: Keys | None, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        scope[IN_USE] = []

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._require_key(Request(scope))
            await self._app(scope, receive, counted)
        except ClientDisconnect:
            status = CLIENT_CLOSED
        except Exception as error:
            if status:  # the answer has begun
                raise
            failure = failure_of(error)
            if failure is None:
                raise
            await _written(failure, scope["path"])(scope, receive, counted)
        finally:
            for model in scope[IN_USE]:
                model.users -= 1
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()

    def _require_key(self, request: Request) -> None:
        if self._keys is None or request.url.path in OPEN_PATHS:
            return
        if not self._keys.accepts(request.headers.get("authorization", "")):
            message = "the header Authorization has none of this server's keys; Bearer KEY is expected"
            header = {"WWW-Authenticate": "Bearer"}
            raise Failure(UNAUTHORIZED, message, "authentication_error", code="invalid_api_key", headers=header)


KNOWN_PATHS = OPEN_PATHS | {
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/feedback", INVOCATIONS, "/metrics", "/openapi.json",
}  # fmt: skip

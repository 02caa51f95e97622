"""The routes of the service."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dymn import __version__
from dymn.inference.selection import TagSettings
from dymn.inference.tagger import Tagger
from dymn.inference.windows import one_result
from dymn.runtime.layers import LAST
from dymn.serve.assets import Asset, find_assets, response, runs_in_browser
from dymn.serve.batching import Deadline
from dymn.serve.errors import Refusal, refusal
from dymn.serve.guard import Guard
from dymn.serve.live import serve_live
from dymn.serve.metrics import CONTENT_TYPE
from dymn.serve.service import Question, Service
from dymn.serve.settings import ServeSettings
from dymn.serve.uploads import receive
from dymn.system.memory import release_memory

_REPEATED = ("labels", "exclude")
"""Parameters of a query that may be given several times."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
}
_BODY = {
    "requestBody": {"required": True, "content": {"application/octet-stream": _BINARY, "multipart/form-data": _FORM}}
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in {
        400: "A setting is not allowed, the body is empty, or a form has no file or other fields.",
        401: "The token is missing or wrong.",
        404: "There is no such model.",
        408: "The body took too long to arrive.",
        413: "The body or the recording is too long.",
        415: "The format needs a decoder that is not installed.",
        422: "The recording cannot be decoded, or a parameter of the query is unknown, repeated or without effect.",
        503: "The queue is full, or the response took too long; Retry-After states when to try again.",
    }.items()
}


def create_app(taggers: Mapping[str, Tagger], settings: ServeSettings | None = None, page: bool = True) -> Guard:
    """Return the service as an ASGI application. Its threads start and end with the application's life.

    Args:
        taggers: the models by the names under which they are served, the default one first.
        settings: the limits.
        page: whether to serve the page at /.
    """
    service = Service(taggers, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="dymn", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False
    )
    app.state.service = service
    _add_errors(app)
    _add_tagging(app, service)
    _add_state(app, service)
    if page:
        _add_page(app, find_assets())
    return Guard(app, service.settings)


def _add_tagging(app: FastAPI, service: Service) -> None:
    @app.post("/v1/tag", openapi_extra=_BODY, responses=_REFUSALS, tags=["tags"], dependencies=[Depends(_check_query)])
    async def tag(
        request: Request,
        model: Annotated[str, Query(description="A name from /v1/models; the default is the first one.")] = "",
        top_k: Annotated[int, Query(ge=0, description="At most this many labels, best first; 0 returns all.")] = 10,
        threshold: Annotated[
            Annotated[float, Field(ge=0, le=1)] | Literal["auto", "precise"],
            Query(
                description="Only labels with at least this probability; auto and precise use the thresholds "
                "stored in the model."
            ),
        ] = 0.0,
        labels: Annotated[list[str] | None, Query(description='Only these labels; patterns such as "*music*".')] = None,
        exclude: Annotated[list[str] | None, Query(description="Not these labels.")] = None,
        window: Annotated[float, Query(description="Length of a window in seconds.")] = 10.0,
        hop: Annotated[
            float | None, Query(description="Distance between the starts of two windows in seconds.")
        ] = None,
        fill: Annotated[
            Literal["repeat", "pad", "bare"],
            Query(description="How a recording that is shorter than the window is filled."),
        ] = "repeat",
        combine: Annotated[
            Literal["max", "mean"], Query(description="How windows are combined for the whole recording.")
        ] = "max",
        specific: Annotated[bool, Query(description="Omit general labels if a more specific one is found.")] = False,
        channel: Annotated[str, Query(description="mix, left, right, loudest, or a number from 1.")] = "mix",
        gain: Annotated[str, Query(description="Gain in dB, or auto to amplify quiet recordings.")] = "0",
        band: Annotated[str | None, Query(description="Frequencies to keep, in Hz, such as 2000-8000.")] = None,
        timeline: Annotated[bool, Query(description="Also return the tags of each window.")] = False,
        embedding: Annotated[bool, Query(description="Also return an embedding, as `dymn embed` does.")] = False,
        layers: Annotated[
            str | None,
            Query(description="The layers of the embedding; the default is last.", min_length=1, max_length=200),
        ] = None,
    ) -> dict[str, Any]:
        """Tell which sounds are in a recording: the body of the request, or the field `file` of a form."""
        reading: dict[str, Any] = {"channel": channel, "gain": gain, "band": band, "specific": specific}
        given = (top_k, threshold, tuple(labels or ()), tuple(exclude or ()), window, hop, fill, combine)
        chosen = TagSettings(*given, **reading)
        one_result(chosen)
        if layers and not embedding:
            raise Refusal(422, "query", "layers has no effect without an embedding. Add embedding=true.")
        question = Question(model, chosen, timeline, (layers or LAST) if embedding else "")
        before = monotonic()
        with service.admitted() as arrival:
            service.check(question)
            upload = await receive(request, service.settings.max_bytes, service.settings.receive_timeout, arrival)
            answer = await _while_wanted(request, service, upload, question)
        service.metrics.seconds.observe(monotonic() - before)
        service.metrics.answers.labels("200").inc()
        return answer

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await serve_live(socket, service)


async def _check_query(request: Request) -> None:
    """Reject unknown and repeated parameters, which a program would otherwise believe to be applied."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            remedy = f"Did you mean {similar[0]}?" if similar else f"Known: {', '.join(known) or 'none'}."
            raise Refusal(422, "query", f"There is no parameter {name[:100]!r}. {remedy}")
        if name not in _REPEATED and len(request.query_params.getlist(name)) > 1:
            raise Refusal(422, "query", f"{name} is given more than once. Give it once.")


async def _while_wanted(request: Request, service: Service, upload: Any, question: Question) -> dict[str, Any]:
    """Compute a response while the client is connected."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(service.answer(upload, question, Deadline(service.settings.timeout)))
    left = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        work.cancel()
        await asyncio.gather(left, work, return_exceptions=True)  # else their errors would be logged as never seen


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["models"], dependencies=[Depends(_check_query)], responses={422: _REFUSALS[422]})
    async def models() -> dict[str, Any]:
        """List the models that are served, and the limits."""
        names = ("max_bytes", "max_seconds", "max_window", "timeout")
        limits = {name: getattr(service.settings, name) for name in names}
        return {"version": __version__, "models": service.models, "limits": limits}

    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Tell that the process lives, however busy it is."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"], responses={503: {"description": "Starting or shutting down."}})
    async def ready() -> JSONResponse:
        """Tell whether requests are answered: the models are loaded, and the server is not shutting down."""
        return JSONResponse({"status": "ready" if service.ready else "not ready"}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["state"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, assets: dict[str, Asset]) -> None:
    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return response(assets["index.html"], request)

    @app.get("/page/state.json", include_in_schema=False)
    async def state() -> dict[str, bool]:
        return {"in_browser": runs_in_browser(assets)}

    @app.get("/page/{name:path}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in assets:
            raise Refusal(404, "not_found", "There is no such file.")
        return response(assets[name], request)


def _add_errors(app: FastAPI) -> None:
    # Coroutines, for other functions are called in threads, and without memory there may be no new one.
    async def answer(request: Request, error: Exception) -> JSONResponse:
        known = refusal(error)
        if known.code == "memory":
            release_memory(error)
        service: Service = request.app.state.service
        if request.url.path == "/v1/tag":
            service.metrics.answers.labels(str(known.status)).inc()
            service.metrics.refused.labels(known.code).inc()
        return JSONResponse(known.to_dict(), known.status, known.headers)

    async def settings(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ())[1:])
        message = f"{where}: {first.get('msg', 'not allowed')}. /openapi.json lists what is allowed."
        return await answer(request, Refusal(400, "setting", message))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = {404: "There is no such endpoint.", 405: "The endpoint requires another method."}
        named = f"/v1{request.url.path}"
        if error.status_code == 404 and named in {getattr(route, "path", "") for route in app.routes}:
            known[404] = f"There is no such endpoint; did you mean {named}?"
        message = f"{known.get(error.status_code, error.detail)} /openapi.json lists all."
        return await answer(request, Refusal(error.status_code, "http", message))

    async def gone(request: Request, error: Exception) -> JSONResponse:
        return await answer(request, Refusal(499, "gone", "The client disconnected."))

    from dymn.errors import DymnError

    for kind, handler in (
        (DymnError, answer),
        (RequestValidationError, settings),
        (HTTPException, http),
        (ClientDisconnect, gone),
    ):
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, answer)

"""The requests that are answered.

| request | |
|---|---|
| `POST /v1/chat/completions` | an answer, whole or as a stream of events |
| `GET /v1/models`, `GET /v1/models/NAME` | the one model |
| `GET /health` | whether it is ready, and how many requests are under way |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from runtime.defaults import GenerationSet
from runtime.serve.answer import END, Answer, event
from runtime.serve.errors import ApiError, api_error
from runtime.serve.guard import HEALTH
from runtime.serve.request import ChatRequest, read_request
from runtime.serve.work import Job, Work
from runtime.session import Reply
from runtime.web.body import TooLargeError, body_blocks, media_type

BODY_LIMIT = 64 << 20  # bytes: a picture in base64, and a long conversation
BODY_SECONDS = 60.0  # in which a request has to come whole
_GONE = 499  # nobody hears it


@dataclass(frozen=True, kw_only=True)
class Served:
    """The one model."""

    name: str
    created: int  # seconds since 1970
    settings: GenerationSet

    def to_json(self) -> dict[str, Any]:
        """Returns what lists of models say of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "minicpmv",
        }


def serve_app(served: Served, work: Work, *, body_limit: int = BODY_LIMIT) -> Starlette:
    """Makes the application; put a `KeyGuard` before it.

    Args:
        served: the model's name and settings.
        work: answers.
        body_limit: bytes of a request.
    """

    async def complete(request: Request) -> Response:
        if media_type(request) != "application/json":
            raise ApiError(415, "expected application/json", code="invalid_media_type")
        place = work.enter()
        try:
            raw = await asyncio.wait_for(_read(request, body_limit), BODY_SECONDS)
            chat = await asyncio.to_thread(_parse, raw, served)
            job = work.begin(chat, place)
        except ClientDisconnect:
            place.leave()
            return Response(status_code=_GONE)
        except asyncio.TimeoutError as error:
            place.leave()
            raise ApiError(408, "the request did not come whole", code="timeout") from error
        except BaseException:
            place.leave()
            raise
        return await _answer(request, chat, job, Answer(served.name))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served.to_json()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != served.name:
            raise ApiError(404, f"no model {name!r:.80}", code="model_not_found", param="model")
        return JSONResponse(served.to_json())

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": served.name, "requests": work.taken})

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route(HEALTH, health),
    ]
    handlers: dict[Any, Any] = {ApiError: _refuse, HTTPException: _refuse_http}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


async def _read(request: Request, limit: int) -> bytes:
    try:
        return b"".join([block async for block in body_blocks(request, limit)])
    except TooLargeError as error:
        raise ApiError(
            413, f"a request has at most {limit >> 20} MiB", code="request_too_large"
        ) from error


def _parse(raw: bytes, served: Served) -> ChatRequest:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    return read_request(fields, served.name, served.settings)


async def _answer(request: Request, chat: ChatRequest, job: Job, answer: Answer) -> Response:
    """Answers; the client's end ends the work."""
    watch = asyncio.create_task(_stop_with_client(request, job))
    try:
        if chat.is_stream:
            first = await job.next()
            if isinstance(first, BaseException):  # nothing is sent yet: a status can say it
                raise api_error(first)
            stream = _stream(first, job, answer, chat.wants_usage, watch)
            return StreamingResponse(stream, media_type="text/event-stream")
        while isinstance(got := await job.next(), str):
            pass  # the reply has it all
        if isinstance(got, BaseException):
            raise api_error(got)
        watch.cancel()
        return JSONResponse(answer.whole(got))
    except BaseException:
        job.stop()
        watch.cancel()
        raise


async def _stream(
    first: str | Reply,
    job: Job,
    answer: Answer,
    wants_usage: bool,
    watch: asyncio.Task[None],
) -> AsyncIterator[str]:
    """Yields the events of an answer."""
    try:
        yield answer.first()
        got: str | Reply | BaseException = first
        while isinstance(got, str):
            yield answer.piece(got)
            got = await job.next()
        if isinstance(got, BaseException):
            yield event(api_error(got).to_json())
            return
        yield answer.last(got)
        if wants_usage:
            yield answer.usage(got)
        yield END
    finally:
        job.stop()
        watch.cancel()


async def _stop_with_client(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.stop()


async def _refuse(request: Request, error: ApiError) -> Response:
    return error.response()


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    return ApiError(
        error.status_code, f"{request.method} {path[:80]}: {error.detail}", headers=error.headers
    ).response()

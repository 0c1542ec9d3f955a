"""The routes of the server.

| request | |
|---|---|
| `POST /v1/chat/completions` | an answer, whole or as a stream of events |
| `GET /v1/models`, `GET /v1/models/NAME` | the one model |
| `GET /health` | whether it is ready, and how many requests are under way |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from convert.support.strict_json import parse_json
from runtime.http.body import TooLargeError, TooSlowError, body_blocks, media_type
from runtime.inputs.defaults import GenerationSet
from runtime.inputs.logprobs import StepLogprobs
from runtime.inputs.prompt import Tokenizer
from runtime.serve.answer import END, CompletionFrame, event
from runtime.serve.errors import ApiError, api_error, json_response, queue_full
from runtime.serve.guard import HEALTH
from runtime.serve.logprobs import TokenTexts
from runtime.serve.request import ChatRequest, read_request
from runtime.serve.work import AnswerEvent, AnswerQueue, PendingAnswer
from runtime.sessions.session import Reply

BODY_LIMIT = 64 << 20  # bytes: a picture in base64, and a long conversation
BODIES_LIMIT = 256 << 20  # bytes of all requests that are being received or parsed
_GONE = 499  # the client has disconnected; nobody reads it


@dataclass(frozen=True, kw_only=True)
class Served:
    """The one model."""

    name: str
    created: int  # seconds since 1970
    settings: GenerationSet
    tokenizer: Tokenizer

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of this model in the list of models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "minicpmv",
        }


def serve_app(served: Served, work: AnswerQueue, *, body_limit: int = BODY_LIMIT) -> Starlette:
    """Makes the application; put a `KeyGuard` before it.

    Args:
        served: the model's name and settings.
        work: answers.
        body_limit: bytes of a request.
    """
    bodies = _Bodies(body_limit)

    async def begin(request: Request) -> tuple[ChatRequest, PendingAnswer]:
        async with bodies.read(request) as raw:
            place = work.enter()  # a client that is slow to send blocks nobody
            try:
                chat = await asyncio.to_thread(_parse, raw, served)
                return chat, work.begin(chat, place)
            except BaseException:
                place.leave()
                raise

    async def complete(request: Request) -> Response:
        if media_type(request) != "application/json":
            raise ApiError(415, "expected application/json", code="invalid_media_type")
        try:
            chat, job = await begin(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        asks_logprobs = chat.options.top_logprobs is not None
        texts = TokenTexts(served.tokenizer) if asks_logprobs else None
        return await _answer(request, chat, job, CompletionFrame(served.name, texts))

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [served.to_json()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != served.name:
            raise ApiError(404, f"no model {name!r:.80}", code="model_not_found", param="model")
        return json_response(served.to_json())

    async def health(request: Request) -> Response:
        return json_response({"status": "ok", "model": served.name, "requests": work.admitted})

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


class _Bodies:
    """Reads request bodies; limits their size, one by one and in total."""

    def __init__(self, limit: int) -> None:
        """Args: limit: bytes of a request."""
        self._limit, self._held = limit, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yields a request's body.

        Raises:
            ApiError: it is too large, too slow, or too much comes at once.
        """
        blocks: list[bytes] = []
        try:
            async for block in body_blocks(request, self._limit):
                self._held += len(block)
                blocks.append(block)
                if self._held > BODIES_LIMIT:
                    raise queue_full("too much data is being received at once")
            yield b"".join(blocks)
        except TooLargeError as error:
            raise ApiError(
                413, f"a request may have at most {self._limit >> 20} MiB", code="request_too_large"
            ) from error
        except TooSlowError as error:
            raise ApiError(408, "the request did not arrive in time", code="timeout") from error
        finally:
            self._held -= sum(map(len, blocks))


def _parse(raw: bytes, served: Served) -> ChatRequest:
    try:
        fields = parse_json(raw, lone_surrogates=True)  # `read_request` names their field
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    return read_request(fields, served.name, served.settings)


async def _answer(
    request: Request, chat: ChatRequest, job: PendingAnswer, answer: CompletionFrame
) -> Response:
    """Answers a request; cancels the work when the client disconnects."""
    watch = asyncio.create_task(_stop_with_client(request, job))
    try:
        if chat.is_stream:
            first = await job.next()
            if isinstance(first, BaseException):  # nothing is sent yet, so the status can report it
                raise api_error(first)
            stream = _stream(first, job, answer, chat.wants_usage, watch)
            return StreamingResponse(stream, media_type="text/event-stream")
        steps: list[StepLogprobs] = []
        while not isinstance(got := await job.next(), Reply | BaseException):
            if isinstance(got, StepLogprobs):  # the reply holds the whole text
                steps.append(got)
        if isinstance(got, BaseException):
            raise api_error(got)
        watch.cancel()
        return json_response(answer.whole(got, steps))
    except BaseException:
        job.stop()
        watch.cancel()
        raise


async def _stream(
    first: str | StepLogprobs | Reply,
    job: PendingAnswer,
    answer: CompletionFrame,
    wants_usage: bool,
    watch: asyncio.Task[None],
) -> AsyncIterator[str]:
    """Yields the events of an answer."""
    try:
        yield answer.first()
        got: AnswerEvent = first
        steps: list[StepLogprobs] = []  # since the last piece
        while not isinstance(got, Reply | BaseException):
            if isinstance(got, StepLogprobs):
                steps.append(got)
            else:
                yield answer.piece(got, steps)
                steps = []
            got = await job.next()
        if isinstance(got, BaseException):
            yield event(api_error(got).to_json())
            return
        if steps:  # tokens without text, or those that a stop text held back
            yield answer.piece("", steps)
        yield answer.last(got)
        if wants_usage:
            yield answer.usage(got)
        yield END
    finally:
        job.stop()
        watch.cancel()


async def _stop_with_client(request: Request, job: PendingAnswer) -> None:
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

"""The page over HTTP: its files, its pictures, its commands, and the stream of events.

| request | |
|---|---|
| `GET NAME` | a file of `android/page`; none: the page itself |
| `GET picture/ID` | a picture for the screen |
| `GET events` | server-sent events: all of BRIDGE.md's, the state and the chat first |
| `GET log` | the log, with what is known of the machine and the model |
| `POST command` | a command of BRIDGE.md, as JSON |
| `POST picture` | the picture that the user chose, as it is; `?several`: one of several |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from convert.support.strict_json import parse_json
from runtime.http.body import TooLargeError, TooSlowError, body_blocks, media_type
from runtime.inputs.picture import MAX_BYTES
from runtime.inputs.picture_format import PictureError
from runtime.web.assistant import Assistant
from runtime.web.events import Events
from runtime.web.pictures import Pictures

PAGE = Path(__file__).resolve().parents[2] / "android" / "page"
START = "index.html"
LOG_NAME = "minicpmv-log.txt"
COMMAND_LIMIT = 1 << 20  # bytes
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_NOTHING = 204


def web_app(
    assistant: Assistant, events: Events, store: Pictures, log: Callable[[], str]
) -> Starlette:
    """Makes the application; see the table above. Put a `Guard` before it.

    Args:
        assistant: takes the commands.
        events: what it publishes.
        store: the pictures.
        log: returns the log's text.
    """
    handlers = _Handlers(assistant, events, store, log)
    routes = [
        Route("/", handlers.file),
        Route("/events", handlers.stream),
        Route("/log", handlers.report),
        Route("/command", handlers.command, methods=["POST"]),
        Route("/picture", handlers.add_picture, methods=["POST"]),
        Route("/picture/{name}", handlers.picture),
        *(Route(f"/{name}", handlers.file) for name in handlers.files),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


class _Handlers:
    """What answers each request of the table above."""

    def __init__(
        self, assistant: Assistant, events: Events, store: Pictures, log: Callable[[], str]
    ) -> None:
        """Args: see `web_app`."""
        self._assistant, self._events, self._store, self._log = assistant, events, store, log
        self.files = {path.name: path for path in PAGE.iterdir() if path.suffix in _TYPES}

    async def file(self, request: Request) -> Response:
        """Returns a file of the page."""
        path = self.files[request.scope["path"].removeprefix("/") or START]
        return FileResponse(path, media_type=_TYPES[path.suffix])

    async def picture(self, request: Request) -> Response:
        """Returns a picture for the screen."""
        name = request.path_params["name"]
        if not self._store.has(name):
            return _wrong("there is no such picture", 404)
        return FileResponse(self._store.small(name))

    async def stream(self, request: Request) -> Response:
        """Streams the events, which begin with the state and the chat."""

        async def lines() -> AsyncIterator[str]:
            async for text in self._events.stream():
                if text.startswith(":"):  # from here on nothing is missed: all that there is
                    await asyncio.to_thread(self._assistant.greet)
                yield text

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def report(self, request: Request) -> Response:
        """Returns the log, as a file to save."""
        text = await asyncio.to_thread(lambda: f"{self._assistant.report()}\n\n{self._log()}")
        disposition = {"Content-Disposition": f'attachment; filename="{LOG_NAME}"'}
        content = text.encode("utf-8", "backslashreplace")  # paths may be of no encoding
        return PlainTextResponse(content, headers=disposition)

    async def command(self, request: Request) -> Response:
        """Takes a command of the page."""
        if media_type(request) != "application/json":
            return _wrong("expected application/json", 415)
        try:
            raw = b"".join([block async for block in body_blocks(request, COMMAND_LIMIT)])
            command = parse_json(raw, lone_surrogates=True)  # the assistant tells the page
            await asyncio.to_thread(self._assistant.receive, command)
        except TooLargeError:
            return _wrong(f"a command has at most {COMMAND_LIMIT:,} bytes", 413)
        except TooSlowError:
            return _wrong("the command did not come whole", 408)
        except ValueError as error:
            return _wrong(f"no command: {error}", 400)
        return Response(status_code=_NOTHING)

    async def add_picture(self, request: Request) -> Response:
        """Takes the picture that the user chose."""
        if media_type(request) != "application/octet-stream":
            return _wrong("expected application/octet-stream", 415)
        partial = self._store.partial()
        try:
            with partial.open("wb") as target:
                await _receive(request, target)
        except TooLargeError:
            partial.unlink()
            what = f"the picture is larger than {MAX_BYTES >> 20} MiB"
            self._assistant.fail(PictureError(what))
            return _wrong(what, 413)
        except (OSError, ClientDisconnect, TooSlowError) as error:
            partial.unlink(missing_ok=True)
            what = "the picture did not come whole"
            self._assistant.fail(error if isinstance(error, OSError) else PictureError(what))
            return _wrong(what, 400)
        several = "several" in request.query_params
        await asyncio.to_thread(self._assistant.add_picture, partial, is_one_of_several=several)
        return Response(status_code=_NOTHING)


async def _receive(request: Request, target: BinaryIO) -> None:
    async for block in body_blocks(request, MAX_BYTES):
        target.write(block)


def _wrong(what: str, status: int) -> Response:
    # What it quotes may hold what no encoding has, as JSON does.
    return PlainTextResponse(f"{what}\n".encode("utf-8", "backslashreplace"), status)

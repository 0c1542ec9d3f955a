"""Runs the server until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

import uvicorn

from quantize.errors import ConfigError
from runtime.web import files
from runtime.web.assistant import Assistant
from runtime.web.chats import ChatStore
from runtime.web.events import Events
from runtime.web.guard import NAMES, Guard
from runtime.web.model import Model
from runtime.web.pictures import Pictures
from runtime.web.server import web_app
from runtime.web.settings import Settings
from runtime.web.work import Desk

_LOG_LIMIT = 128 << 10  # bytes of each of two files
_TOKEN_BYTES = 24
_END_SECONDS = 5  # for requests that are under way


def serve(
    model: Model,
    folder: Path,
    *,
    port: int,
    window: int,
    choices: dict[str, object],
    seed: int | None,
    picture: Path | None,
    on_start: Callable[[str], None],
) -> None:
    """Serves the page until the user interrupts it; the model is closed then.

    Args:
        model: loaded.
        folder: where chats, pictures, settings and the log are kept.
        port: on which to listen; 0: one that is free.
        window: by default, in tokens.
        choices: settings that the command line names; as if they were chosen on the page.
        seed: makes sampling repeatable.
        picture: a file that the first question will be about.
        on_start: gets the page's address once it is served.

    Raises:
        ConfigError: the port is taken, or another server uses the folder.
        PictureError: not a picture.
    """
    with files.owned(folder), _logging(folder / "log.txt") as log, _listening(port) as listener:
        settings = Settings(folder / "settings.json", model.loaded.defaults, window)
        if choices:
            settings.choose(choices)
        pictures = Pictures(folder / "pictures")
        chats = ChatStore(folder / "chats")
        desk = Desk(
            folder=folder,
            model=model,
            chats=chats,
            pictures=pictures,
            settings=settings,
            seed=seed,
        )
        events = Events()
        assistant = Assistant(desk, events.publish)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        address = f"http://{NAMES[0]}:{listener.getsockname()[1]}/{token}/"
        app = Guard(
            web_app(assistant, events, pictures, log),
            token=token,
            port=listener.getsockname()[1],
        )
        try:
            if picture is not None:
                assistant.show(picture)
            assistant.prepare()
            config = uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_END_SECONDS,
            )
            server = _Server(config, lambda: on_start(address), events.close)
            try:
                server.run(sockets=[listener])
            except KeyboardInterrupt:  # the usual end of a server
                pass
        finally:
            events.close()
            assistant.close()


class _Server(uvicorn.Server):
    """Says when it has begun, and when it is about to end."""

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start, self._on_end = on_start, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        await asyncio.to_thread(self._on_start)  # a browser may be slow to start

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; streams of events would never end by themselves."""
        self._on_end()
        await super().shutdown(sockets)


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """Takes a port on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((NAMES[0], port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} on {NAMES[0]} cannot be had: {error}; try another --port, or none"
            ) from error
        yield listener


@contextmanager
def _logging(path: Path) -> Iterator[Callable[[], str]]:
    """Writes this package's log to a file of bounded size; yields how to read it."""
    logger = logging.getLogger(__package__)
    handler = RotatingFileHandler(path, maxBytes=_LOG_LIMIT, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before, logger.propagate = logger.propagate, False  # what failed is on the page already
    logger.addHandler(handler)

    def text() -> str:
        parts = [path.with_name(f"{path.name}.1"), path]
        return "".join(part.read_text("utf-8", "replace") for part in parts if part.exists())

    try:
        yield text
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
        handler.close()

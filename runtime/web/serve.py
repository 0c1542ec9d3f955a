"""Runs the server until Ctrl-C."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from runtime.http.guard import NAMES, Guard
from runtime.http.listen import listening, run_server
from runtime.web import files
from runtime.web.assistant import Assistant
from runtime.web.chats import ChatStore
from runtime.web.events import Events
from runtime.web.model import LoadedModel
from runtime.web.pictures import Pictures
from runtime.web.server import web_app
from runtime.web.settings import Settings
from runtime.web.work import ChatServices

_LOG_LIMIT = 128 << 10  # bytes of each of two files
_TOKEN_BYTES = 24
_SCREEN = logging.getLogger(__package__.partition(".")[0])  # beside the log's file


def serve(
    model: LoadedModel,
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
    with (
        files.owned(folder),
        _logging(folder / "log.txt") as log,
        listening(NAMES[0], port) as listener,
    ):
        settings = Settings(folder / "settings.json", model.loaded.defaults, window)
        if choices:
            settings.choose(choices)
        pictures = Pictures(folder / "pictures")
        chats = ChatStore(folder / "chats")
        for path in chats.unread:  # the page does not show it
            _SCREEN.warning("%s: no chat, or a damaged one; it stays, and so do all pictures", path)
        services = ChatServices(
            folder=folder,
            model=model,
            chats=chats,
            pictures=pictures,
            settings=settings,
            seed=seed,
        )
        events = Events()
        assistant = Assistant(services, events.publish)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        address = f"http://{NAMES[0]}:{listener.getsockname()[1]}/{token}/"
        app = Guard(web_app(assistant, events, pictures, log), token=token)
        try:
            if picture is not None:
                assistant.show(picture)
            assistant.prepare()
            run_server(app, listener, on_start=lambda: on_start(address), on_end=events.close)
        finally:
            events.close()
            assistant.close()


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

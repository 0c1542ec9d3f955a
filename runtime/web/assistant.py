"""The host of the page: takes its commands, runs the work, and publishes events.

`android/page/BRIDGE.md` lists commands and events; `Assistant.java` is the same for the app.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.support.versions import VERSION
from quantize.errors import ToolkitError
from runtime.inputs.memory import give_back_memory
from runtime.inputs.picture_format import PictureError
from runtime.inputs.prompt import PromptError, check_text
from runtime.web.chats import USER, ChatStore, Turn
from runtime.web.events import Event
from runtime.web.failures import BusyError, InvalidTextError, error_code
from runtime.web.settings import RANGES
from runtime.web.work import ChatServices, ChatWorker, now

log = logging.getLogger(__name__)


class Assistant:
    """All but the transport. Its methods come from any thread and return soon."""

    def __init__(self, services: ChatServices, publish: Callable[[Event], None]) -> None:
        """Args: services: what it works with. publish: brings events to the pages."""
        self._services, self._publish = services, publish
        self._chats: ChatStore = services.chats
        self._lock = threading.RLock()
        self._publishing = threading.Lock()  # what is published last is the latest
        self._current: str | None = None  # the chat on the page; None: a new one
        self._chosen: dict[str, Any] | None = None  # a picture that is not asked about yet
        self._work = ChatWorker(services, publish, self._on_change)
        if not services.chats.unread:  # else one of them may show any picture, once it is mended
            services.pictures.keep_only(services.chats.pictures())
        self._commands: dict[str, Callable[[dict[str, Any]], None]] = {
            "hello": lambda command: self.greet(),
            "open": self._open,
            "delete": self._delete,
            "send": self._send,
            "stop": lambda command: self._work.stop(),
            "drop": self._drop,
            "settings": self._change,
            "check": lambda command: self._work.check(),
            "retry": lambda command: self._work.prepare(),
        }

    def prepare(self) -> None:
        """Opens the model."""
        self._work.prepare()

    def close(self) -> None:
        """Cancels the running work and closes the model."""
        self._work.close()

    def greet(self) -> None:
        """Publishes the whole state for a page that has just connected."""
        self._on_change()
        with self._lock:
            chosen = self._chosen
        if chosen is not None:
            self._publish({"event": "picture", "picture": chosen})

    def receive(self, command: Any) -> None:
        """Takes a command of the page.

        Raises:
            ValueError: it is none.
        """
        name = command.get("do") if isinstance(command, dict) else None
        if not isinstance(name, str) or name not in self._commands:
            raise ValueError(f"{name!r:.40} is no command")
        try:
            self._commands[name](command)
        except (ToolkitError, OSError) as error:
            self.fail(error)

    def add_picture(self, partial: Path) -> None:
        """Takes an uploaded picture, at a path of `Pictures.partial`."""
        try:
            chosen = self._services.pictures.take(partial)
        except (ToolkitError, OSError, MemoryError) as error:
            self.fail(error)
            return
        finally:
            give_back_memory()
        with self._lock:
            self._chosen = chosen
        self._publish({"event": "picture", "picture": chosen})

    def show(self, path: Path) -> None:
        """Takes a picture of the command line.

        Raises:
            PictureError: the format is not supported.
        """
        try:
            partial = Path(shutil.copyfile(path, self._services.pictures.partial()))
        except OSError as error:
            raise PictureError(f"{path}: {error.strerror or error}") from error
        try:
            self._chosen = self._services.pictures.take(partial)
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from error

    def fail(self, error: Exception) -> None:
        """Tells the page of an error."""
        code = error_code(error)
        log.warning("%s: %s", code, error)
        self._publish({"event": "error", "code": code, "message": str(error)})

    def report(self) -> str:
        """Returns what a bug report says about this machine and model, without any chats."""
        state, hidden = self._state(), ("chats", "ranges")
        return "\n".join(f"{key}: {value}" for key, value in state.items() if key not in hidden)

    def _on_change(self) -> None:
        self._publish_state()
        self._publish_chat()

    def _open(self, command: dict[str, Any]) -> None:
        name = _text(command, "chat")
        with self._lock:
            self._current = None if self._chats.get(name) is None else name
        self._publish_chat()

    def _delete(self, command: dict[str, Any]) -> None:
        name = _text(command, "chat")
        if name is None:
            return
        answering = self._work.answering()
        if answering is not None and answering.chat == name:
            self._work.stop()
        with self._lock:
            self._current = None if self._current == name else self._current
            self._chats.delete(name)
        self._on_change()

    def _drop(self, command: dict[str, Any]) -> None:
        with self._lock:
            self._chosen = None

    def _send(self, command: dict[str, Any]) -> None:
        """Takes a question: a new one, or one in place of an earlier one."""
        text = (_text(command, "text") or "").strip()
        picture = _text(command, "picture")
        if not text:
            return
        with self._lock:
            if self._work.answering() is not None:
                raise BusyError("an answer is under way")
            if picture is not None and not self._services.pictures.has(picture):
                raise PictureError("the picture is gone")
            known = self._chats.get(_text(command, "chat"))
            place = 0 if known is None else command.get("from", len(known.turns))
            if type(place) is not int:
                raise ValueError(f"{place!r:.40} is no place in a chat")
            chat = known or self._chats.create(now())
            chat.ask(place, Turn(role=USER, text=text, picture=picture), now())
            self._current = chat.name
            self._chosen = None
            self._work.answer(chat)
            self._chats.save(chat)  # last: where the disk is full, there is an answer all the same

    def _change(self, command: dict[str, Any]) -> None:
        choices = command.get("settings")
        if choices is None:
            self._services.settings.reset()
        else:
            self._services.settings.choose(choices)
        self._publish_state()

    def _publish_state(self) -> None:
        with self._publishing:
            self._publish({"event": "state", **self._state()})

    def _publish_chat(self) -> None:
        with self._publishing:
            chat = self._chats.get(self._current)
            event: Event = {"event": "chat"}
            if chat is not None:
                event["chat"] = chat.to_json()
                answering = self._work.answering()
                if answering is not None and answering.chat == chat.name:
                    event["partial"] = answering.text
            self._publish(event)

    def _state(self) -> Event:
        settings = self._services.settings.all()
        state: Event = {
            "chats": self._chats.list(),
            "settings": settings,
            "ranges": RANGES,
            "can": [] if self._services.model.bundle is None else ["check", "threads"],
            "about": _about(self._services.folder),
            **self._work.describe(),
        }
        if settings["language"] != "system":
            state["language"] = settings["language"]
        return state


def _text(command: dict[str, Any], key: str) -> str | None:
    value = command.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.40}; expected a text")
    try:
        check_text(value)  # what is shown can be kept
    except PromptError as error:
        raise InvalidTextError(str(error)) from error
    return value


def _about(folder: Path) -> dict[str, Any]:
    """Returns the description of this machine for the page."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = f"{platform.system()} {platform.release()}"
    return {
        "app": VERSION,
        "phone": device,
        "chip": platform.machine(),
        "memory_bytes": memory,
        "folder": str(folder),
    }

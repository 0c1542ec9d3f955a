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
from runtime.web.draft import Draft
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
        self._draft = Draft(services.folder / "draft.json")
        self._offered: list[dict[str, Any]] = []  # pictures that came together, to choose from
        self._published: Event = {}  # identifies the latest `chat` event
        self._work = ChatWorker(services, publish, self._on_change)
        if not services.chats.unread:  # else one of them may show any picture, once it is mended
            chosen = self._draft.picture
            services.pictures.keep_only(
                services.chats.pictures() | (set() if chosen is None else {chosen["id"]})
            )
        self._commands: dict[str, Callable[[dict[str, Any]], None]] = {
            "hello": lambda command: self.greet(),
            "open": self._open,
            "delete": self._delete,
            "rename": self._rename,
            "search": self._search,
            "draft": lambda command: self._draft.set_text(_text(command, "text") or ""),
            "send": self._send,
            "stop": lambda command: self._work.stop(),
            "drop": lambda command: self._draft.set_picture(None),
            "pick": self._pick,
            "settings": self._change,
            "check": lambda command: self._work.check(),
            "bench": lambda command: self._work.bench(),
            "retry": lambda command: self._work.prepare(),
        }

    def prepare(self) -> None:
        """Opens the model."""
        self._work.prepare()

    def close(self) -> None:
        """Cancels the running work and closes the model."""
        self._work.close()

    def greet(self) -> None:
        """Publishes everything for a page that has just connected."""
        self._publish_state()
        self._publish_chat(always=True)
        chosen, text = self._draft.picture, self._draft.text
        if chosen is not None:
            self._publish({"event": "picture", "picture": chosen})
        if text:
            self._publish({"event": "draft", "text": text})
        self._publish_offered()

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

    def add_picture(self, partial: Path, *, is_one_of_several: bool = False) -> None:
        """Takes an uploaded picture, at a path of `Pictures.partial`.

        Args:
            partial: the file.
            is_one_of_several: the page asks which one the question is about.
        """
        try:
            chosen = self._services.pictures.take(partial)
        except (ToolkitError, OSError, MemoryError) as error:
            self.fail(error)
            return
        finally:
            give_back_memory()
        if is_one_of_several:
            with self._lock:
                self._offered.append(chosen)
            self._publish_offered()
        else:
            self._choose(chosen)

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
            self._draft.set_picture(self._services.pictures.take(partial))
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
        self._publish_chat(always=False)

    def _choose(self, picture: dict[str, Any]) -> None:
        self._draft.set_picture(picture)
        self._publish({"event": "picture", "picture": picture})

    def _pick(self, command: dict[str, Any]) -> None:
        """Chooses one of the pictures that came together, or discards them all."""
        name = _text(command, "picture")
        with self._lock:  # the others' files go at the next start
            offered, self._offered = self._offered, []
        for picture in offered:
            if picture["id"] == name:
                self._choose(picture)

    def _publish_offered(self) -> None:
        with self._lock:
            offered = list(self._offered)
        if offered:
            self._publish({"event": "shared", "pictures": offered})

    def _rename(self, command: dict[str, Any]) -> None:
        chat = self._chats.get(_text(command, "chat"))
        if chat is not None:
            chat.rename(_text(command, "title") or "")
            self._on_change()
            self._chats.save(chat)

    def _search(self, command: dict[str, Any]) -> None:
        text = _text(command, "text") or ""
        self._publish({"event": "found", "text": text, "chats": self._chats.search(text)})

    def _open(self, command: dict[str, Any]) -> None:
        name = _text(command, "chat")
        self._draft.set_chat(None if self._chats.get(name) is None else name)
        self._publish_chat(always=True)

    def _delete(self, command: dict[str, Any]) -> None:
        name = _text(command, "chat")
        if name is None:
            return
        answering = self._work.answering()
        if answering is not None and answering.chat == name:
            self._work.stop()
        with self._lock:
            if self._draft.chat == name:
                self._draft.set_chat(None)
            self._chats.delete(name)
        self._on_change()

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
            self._draft.asked(chat.name)
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

    def _publish_chat(self, *, always: bool) -> None:
        """Publishes the chat on the page.

        Args:
            always: otherwise only if it differs from what the pages have; they get the rest of an
                answer as `text`.
        """
        with self._publishing:
            chat = self._chats.get(self._draft.chat)
            answering = self._work.answering()
            is_answered = chat is not None and answering is not None and answering.chat == chat.name
            event: Event = {"event": "chat"} | ({} if chat is None else {"chat": chat.to_json()})
            key = event | {"answering": is_answered}
            if not always and key == self._published:
                return
            self._published = key
            if is_answered and answering is not None:
                event["partial"] = answering.text
            self._publish(event)

    def _state(self) -> Event:
        settings = self._services.settings.all()
        state: Event = {
            "chats": self._chats.list(),
            "settings": settings,
            "ranges": RANGES,
            "can": [
                "bench",
                *(() if self._services.model.bundle is None else ("check", "threads")),
            ],
            "about": _about(self._services.folder),
            **self._work.describe(),
        }
        if settings["language"] != "system":
            state["language"] = settings["language"]
        if settings["theme"] != "system":
            state["dark"] = settings["theme"] == "dark"
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

"""Work that is under way: the page shows how far it is, and can end it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

LOAD, ANSWER, CHECK = "load", "answer", "check"


class StoppedError(Exception):
    """The user ended the work."""


class Job:
    """One piece of work. From any thread."""

    def __init__(self, kind: str, chat: str | None, publish: Callable[[dict[str, Any]], None]):
        """Args: chat: the id of the one that is answered. publish: takes events for the page."""
        self.kind, self.chat = kind, chat
        self._publish = publish
        self._lock = threading.Lock()
        self._wish = threading.Event()
        self._text = ""
        self._progress = ("", 0, 0)

    @property
    def text(self) -> str:
        """What there is of an answer."""
        with self._lock:
            return self._text

    def stop(self) -> None:
        """Wishes its end."""
        self._wish.set()

    def is_stopped(self) -> bool:
        """Says whether its end is wished."""
        return self._wish.is_set()

    def check(self) -> None:
        """Raises StoppedError if its end is wished."""
        if self.is_stopped():
            raise StoppedError

    def advance(self, stage: str, done: int, total: int) -> None:
        """Says how far it is; the page hears of every whole percent."""
        with self._lock:
            before, self._progress = self._progress, (stage, done, total)
        if before[0] != stage or _percent(before[1], total) != _percent(done, total):
            self._publish({"event": "progress", "chat": self.chat, **self._fields()})

    def add(self, piece: str) -> None:
        """Adds to the answer. `at` lets a page drop what it has already: UTF-16, as there."""
        with self._lock:
            at = len(self._text.encode("utf-16-le")) // 2
            self._text += piece
        self._publish({"event": "text", "chat": self.chat, "at": at, "text": piece})

    def to_json(self) -> dict[str, Any]:
        """Returns what the page's state says of it."""
        return self._fields() | ({} if self.chat is None else {"chat": self.chat})

    def _fields(self) -> dict[str, Any]:
        with self._lock:
            stage, done, total = self._progress
        return {"kind": self.kind, "stage": stage, "done": done, "total": total}


def _percent(done: int, total: int) -> int:
    return 100 * done // total if total > 0 else 0

"""Work in progress: the page shows how far it is, and can cancel it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from runtime.engine_client.protocol import Stage

LOAD, ANSWER, CHECK, BENCH = "load", "answer", "check", "bench"


class StoppedError(Exception):
    """The user ended the work."""


class Job:
    """One piece of work. From any thread."""

    def __init__(self, kind: str, chat: str | None, publish: Callable[[dict[str, Any]], None]):
        """Args: chat: the id of the one that is answered. publish: takes events for the page."""
        self.kind, self.chat = kind, chat
        self._publish = publish
        self._lock = threading.Lock()
        self._cancel_requested = threading.Event()
        self._text = ""
        self._progress = ("", 0, 0)
        self._grid: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        with self._lock:
            return self._text

    def stop(self) -> None:
        """Requests cancellation."""
        self._cancel_requested.set()

    def is_stopped(self) -> bool:
        """Returns whether cancellation was requested."""
        return self._cancel_requested.is_set()

    def check(self) -> None:
        """Raises StoppedError if cancellation was requested."""
        if self.is_stopped():
            raise StoppedError

    def advance(self, stage: str, done: int, total: int) -> None:
        """Reports progress; the page gets an event for every whole percent."""
        self.advance_picture(None, stage, done, total)

    def advance_picture(
        self, grid: tuple[int, int] | None, stage: str, done: int, total: int
    ) -> None:
        """Does so for an answer about a picture; grid: columns and rows of its slices, if any."""
        with self._lock:
            before, self._progress = self._progress, (stage, done, total)
            self._grid = grid if stage == Stage.ENCODE else None
        if before[0] != stage or _percent(before[1], total) != _percent(done, total):
            self._publish({"event": "progress", "chat": self.chat, **self._fields()})

    def add(self, piece: str) -> None:
        """Adds to the answer. `at` is its index, in UTF-16 units as in JavaScript."""
        with self._lock:
            at = len(self._text.encode("utf-16-le")) // 2
            self._text += piece
        self._publish({"event": "text", "chat": self.chat, "at": at, "text": piece})

    def to_json(self) -> dict[str, Any]:
        """Returns this job's entry in the page's state."""
        return self._fields() | ({} if self.chat is None else {"chat": self.chat})

    def _fields(self) -> dict[str, Any]:
        with self._lock:
            stage, done, total = self._progress
            grid = {} if self._grid is None else {"grid": self._grid}
        return {"kind": self.kind, "stage": stage, "done": done, "total": total, **grid}


def _percent(done: int, total: int) -> int:
    return 100 * done // total if total > 0 else 0

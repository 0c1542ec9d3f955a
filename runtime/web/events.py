"""Passes events from the worker threads to the pages that are connected."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

Event = dict[str, Any]
_MOST_WAITING = 10_000  # events; a page that lags further behind starts again from the state


class _Listener:
    """A page, in its event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[str | None] = asyncio.Queue()

    def put(self, text: str | None) -> None:
        """Puts an event, or the end, into the queue; runs in the loop."""
        if text is None or self.events.qsize() < _MOST_WAITING:
            self.events.put_nowait(text)
        else:
            self.events.put_nowait(None)


class Events:
    """Every event goes to every page, in the order in which they were published."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[_Listener] = set()
        self._is_closed = False

    def publish(self, event: Event) -> None:
        """Sends an event to all pages; may be called from any thread and returns at once."""
        self._send(f"data: {json.dumps(event)}\n\n")

    def close(self) -> None:
        """Ends all streams, those to come included."""
        self._send(None)
        with self._lock:
            self._is_closed = True

    async def stream(self) -> AsyncIterator[str]:
        """Yields what is published from the first iteration on, as lines of an event stream."""
        listener = _Listener()
        with self._lock:
            if self._is_closed:
                return
            self._listeners.add(listener)
        try:
            yield ": begins\n\n"
            while (text := await listener.events.get()) is not None:
                yield text
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def _send(self, text: str | None) -> None:
        with self._lock:
            for listener in self._listeners:
                listener.loop.call_soon_threadsafe(listener.put, text)

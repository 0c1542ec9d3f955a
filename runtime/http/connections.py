"""Connections that cannot block the server: each has a time limit, and their number is limited.

A client that sends nothing, or one byte at a time, keeps a connection, never a place in a
queue. Where there are too many, the one that has been idle longest goes.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 10.0  # for a request's head to arrive, and between two parts of its body
READ_SECONDS = 60.0  # for a client to read its response
LIMIT = 128  # connections


class BoundedProtocol(H11Protocol):
    """A connection; see above."""

    _patience: asyncio.TimerHandle | None = None  # for the client to send
    _writing: asyncio.TimerHandle | None = None  # for the client to read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > LIMIT:
            others = cast("set[BoundedProtocol]", self.connections - {self})
            idle = [one for one in others if one._patience or one.timeout_keep_alive_task]
            victim = min(idle, key=lambda one: one._waits_since, default=self)
            victim._drop()
        if not transport.is_closing():
            self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        is_new = self.timeout_keep_alive_task is not None  # the first part of the next request
        super().data_received(data)
        if self.transport.is_closing():
            self._stop_waiting()
        elif self.cycle is None or self.cycle.response_complete:
            # A head that is not whole yet, or a body that nobody wants any more: there is a time
            # for all of it.
            if is_new or self._patience is None:
                self._wait_for_client()
        elif self.cycle.more_body:
            self._wait_for_client()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if not self.cycle.response_complete and self.cycle.more_body:  # one that came right behind
            self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._writing = self._after(READ_SECONDS)

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _wait_for_client(self) -> None:
        self._stop_waiting()
        self._patience = self._after(IDLE_SECONDS)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._drop)

    def _drop(self) -> None:
        self.transport.abort()

    @property
    def _waits_since(self) -> float:
        """When it became idle."""
        timer = self._patience or self.timeout_keep_alive_task
        return timer.when() if timer is not None else 0.0

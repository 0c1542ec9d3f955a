"""Connections with timeouts and a limit on their number, so that slow clients block nobody.

A client that sends nothing, or one byte at a time, holds a connection but never a place in the
queue. Above the limit, the connection that has been idle longest is dropped.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 10.0  # for a whole request head, and between two parts of a body
READ_SECONDS = 60.0  # for a client to read its response
LIMIT = 128  # connections


class BoundedProtocol(H11Protocol):
    """A connection with timeouts; see the module."""

    _read_timer: asyncio.TimerHandle | None = None  # for the client to send
    _write_timer: asyncio.TimerHandle | None = None  # for the client to read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > LIMIT:
            others = cast("set[BoundedProtocol]", self.connections - {self})
            idle = [one for one in others if one._read_timer or one.timeout_keep_alive_task]
            victim = min(idle, key=lambda one: one._idle_since, default=self)
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
            # An incomplete head, or a body that is no longer needed: one timeout covers all
            # of it.
            if is_new or self._read_timer is None:
                self._wait_for_client()
        elif self.cycle.more_body:
            self._wait_for_client()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        if not self.cycle.response_complete and self.cycle.more_body:  # a pipelined request
            self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._write_timer = self._after(READ_SECONDS)

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _wait_for_client(self) -> None:
        self._stop_waiting()
        self._read_timer = self._after(IDLE_SECONDS)

    def _stop_waiting(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._drop)

    def _drop(self) -> None:
        self.transport.abort()

    @property
    def _idle_since(self) -> float:
        """When it became idle."""
        timer = self._read_timer or self.timeout_keep_alive_task
        return timer.when() if timer is not None else 0.0

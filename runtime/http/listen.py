"""The HTTP server under `chat --web` and `serve`: a port, and uvicorn until Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from quantize.errors import ConfigError
from runtime.http.connections import BoundedProtocol

_END_SECONDS = 5  # for requests in progress


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Binds a port.

    Args:
        host: an address of this machine, IPv4 or IPv6.
        port: 0 picks a free one.

    Raises:
        ConfigError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} on {host} is not available: {error}; try another --port, or omit it"
            ) from error
        yield listener


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    on_start: Callable[[], None],
    on_end: Callable[[], None],
) -> None:
    """Serves an application until the user interrupts it.

    Args:
        app: answers the requests.
        listener: the bound socket.
        on_start: called once requests are answered.
        on_end: called when no more requests are accepted; it ends streams that would stay open.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    try:
        _Server(config, on_start, on_end).run(sockets=[listener])
    except KeyboardInterrupt:  # the usual end of a server
        pass


class _Server(uvicorn.Server):
    """Reports its start and its shutdown."""

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
        """See uvicorn."""
        self._on_end()
        await super().shutdown(sockets)

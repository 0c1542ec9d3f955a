"""Reads request bodies within limits of size and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.requests import Request

SECONDS = 60.0  # within which a whole request must arrive


class TooLargeError(Exception):
    """A request's body exceeds the limit."""


class TooSlowError(Exception):
    """A request's body does not arrive in time."""


async def body_blocks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yields a request's body.

    Raises:
        TooLargeError: as soon as it is known to exceed a limit.
        TooSlowError: it takes longer than `SECONDS`.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise TooLargeError
    size, deadline = 0, time.monotonic() + SECONDS
    blocks = request.stream()
    while True:
        try:
            block = await asyncio.wait_for(anext(blocks), deadline - time.monotonic())
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            raise TooSlowError from error
        size += len(block)
        if size > limit:
            raise TooLargeError
        yield block


def media_type(request: Request) -> str:
    """Returns a body's media type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()

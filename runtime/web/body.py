"""What a request brings, within limits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request


class TooLargeError(Exception):
    """A request's body exceeds what is taken."""


async def body_blocks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yields a request's body; raises TooLargeError as soon as it is known to exceed a limit."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise TooLargeError
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise TooLargeError
        yield block


def media_type(request: Request) -> str:
    """Returns a body's media type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()

"""Cross-origin requests (CORS): refused, unless the user names the page's origin."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Send

from quantize.errors import ConfigError
from runtime.http.guard import Origin, read_origin

_PREFLIGHT_SECONDS = "600"  # for which a browser caches the answer
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~ ,-]{1,1000}", re.ASCII)


class Cors:
    """The allowed origins, and the headers for their browsers; never with credentials."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        """Reads origins.

        Raises:
            ConfigError: one is invalid.
        """
        self.origins = frozenset(map(_read, origins))

    def is_preflight(self, method: str, headers: Headers) -> bool:
        """Returns whether a request is a preflight request."""
        return method == "OPTIONS" and self._allows(headers)

    def preflight(self, headers: Headers) -> Response:
        """Returns the response to a preflight request."""
        answer = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        }
        wanted = headers.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(wanted):  # the key's header, and any that the client adds
            answer["Access-Control-Allow-Headers"] = wanted
        if headers.get("access-control-request-private-network") == "true":
            answer["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=answer)

    def with_headers(self, headers: Headers, send: Send) -> Send:
        """Wraps `send` so that the requesting page may read the response."""
        if not self._allows(headers):
            return send

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["Access-Control-Allow-Origin"] = headers["origin"]
                answer["Access-Control-Expose-Headers"] = "Retry-After"
                answer["Cross-Origin-Resource-Policy"] = "cross-origin"
                answer.add_vary_header("Origin")
            await send(message)

        return send_allowed

    def _allows(self, headers: Headers) -> bool:
        asking = headers.getlist("origin")
        return len(asking) == 1 and read_origin(asking[0]) in self.origins


def _read(text: str) -> Origin:
    origin = read_origin(text.removesuffix("/"))
    if origin is None or not text.isascii():
        raise ConfigError(
            f"--cors is {text!a}; expected the origin of a page, such as http://localhost:3000"
        )
    return origin

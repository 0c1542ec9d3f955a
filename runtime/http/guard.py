"""Access control: only the page that this server served, in a browser on this machine.

The server listens on loopback, but any page in any browser here can send requests there. So the
address holds a secret, and Host and Origin must be this server's own: a foreign page cannot post,
and a foreign name that resolves to 127.0.0.1 (DNS rebinding) is refused. The port in Host is not
checked: clients omit default ports, and proxies and tunnels use their own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import Collection, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "::1")
_ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+?)\.?(?::([0-9]{1,5}))?", re.ASCII)
_PORTS = {"http": 80, "https": 443}  # https: behind a proxy
# The same as in PageFiles.java.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE = ("GET", "HEAD")


Address = tuple[str, int | None]  # name, port; None: the default port
Origin = tuple[str, str, int | None]  # scheme, name, port


def read_address(text: str) -> Address | None:
    """Parses a Host header; None if it is not an address."""
    match = _ADDRESS.fullmatch(text.lower())
    if match is None:
        return None
    name, port = match.groups()
    if name.startswith("["):
        try:
            name = str(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return None
    return name, None if port is None else int(port)


def read_origin(text: str) -> Origin | None:
    """Parses an Origin header; None if it is invalid or opaque (`null`)."""
    scheme, _, rest = text.lower().partition("://")
    address = read_address(rest)
    if address is None:
        return None
    name, port = address
    return scheme, name, _PORTS.get(scheme) if port is None else port


def foreign_request(
    headers: Headers, names: Collection[str] | None, origins: Collection[Origin] = ()
) -> str | None:
    """Returns why a request is not for this server or comes from another page; None if neither.

    Args:
        headers: the request's.
        names: host names that this server accepts; None: any.
        origins: other pages that may send requests.
    """
    hosts = [read_address(host) for host in headers.getlist("host")]
    if len(hosts) != 1 or hosts[0] is None or not (names is None or hosts[0][0] in names):
        return "the Host header does not name this server"
    asking = [read_origin(origin) for origin in headers.getlist("origin")]
    if asking and all(origin in origins for origin in asking):
        return None
    name, port = hosts[0]
    own = [(scheme, name, usual if port is None else port) for scheme, usual in _PORTS.items()]
    if any(origin not in own for origin in asking):
        return "the request comes from another page"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "the request comes from another site"
    return None


def guarded(send: Send) -> Send:
    """Wraps `send`: responses carry `HEADERS`, and a client that leaves a stream is noticed."""

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)
        # Parts that are ready come without a pause: the loop would never see a closed connection.
        await asyncio.sleep(0)

    return send_guarded


class Guard:
    """Passes allowed requests to an application, with the token removed from their path."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        """Args: token: the first part of every path."""
        self._app, self._prefix = app, f"/{token}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        assert scope["type"] == "http", "the server is configured for HTTP only"
        send_guarded = guarded(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            response = PlainTextResponse(f"{refusal}\n", 403)
            await response(scope, receive, send_guarded)
            return
        path = scope["path"][len(self._prefix) - 1 :]
        inner: MutableMapping[str, Any] = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(inner, receive, send_guarded)

    def _refusal(self, scope: Scope) -> str | None:
        """Returns why a request is refused; None if it is not."""
        headers = Headers(scope=scope)
        foreign = foreign_request(headers, NAMES)
        if foreign is not None:
            return foreign
        if "origin" not in headers and scope["method"] not in _SAFE:
            return "the request has no Origin header"
        given = scope["path"][: len(self._prefix)].encode()
        if not secrets.compare_digest(given, self._prefix.encode()):
            return "the address lacks its secret: open the one that `minicpmv chat --web` printed"
        return None

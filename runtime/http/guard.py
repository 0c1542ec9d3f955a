"""Who may send requests: only the page that this server served, in a browser on this machine.

The server listens on loopback, but any page in any browser here can send requests there. So the
address holds a secret, and Host and Origin must be this server's own: a foreign page cannot post,
and a foreign name that resolves to 127.0.0.1 (DNS rebinding) is refused. The port in Host does
not identify the client: clients omit the usual ones, and proxies and tunnels have their own.
"""

from __future__ import annotations

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
_PORTS = {"http": 80, "https": 443}  # https: of a proxy before this server
# As PageFiles.java has them for the app.
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


Address = tuple[str, int | None]  # a name, and a port unless it is the usual one
Origin = tuple[str, str, int | None]  # a scheme besides


def read_address(text: str) -> Address | None:
    """Reads what Host holds; None: it is not an address."""
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
    """Reads what Origin holds; None: it is not the origin of a page, or an opaque one."""
    scheme, _, rest = text.lower().partition("://")
    address = read_address(rest)
    if address is None:
        return None
    name, port = address
    return scheme, name, _PORTS.get(scheme) if port is None else port


def foreign_request(
    headers: Headers, names: Collection[str] | None, origins: Collection[Origin] = ()
) -> str | None:
    """Says why a request is not for this server or comes from another page, if so.

    Args:
        headers: the request's.
        names: host names that this server answers to; None: any.
        origins: other pages that may send requests.
    """
    called = [read_address(host) for host in headers.getlist("host")]
    if len(called) != 1 or called[0] is None or not (names is None or called[0][0] in names):
        return "this server answers under its own address only"
    asking = [read_origin(origin) for origin in headers.getlist("origin")]
    if asking and all(origin in origins for origin in asking):
        return None
    name, port = called[0]
    own = [(scheme, name, usual if port is None else port) for scheme, usual in _PORTS.items()]
    if any(origin not in own for origin in asking):
        return "this comes from another page"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "this comes from another site"
    return None


def with_headers(send: Send) -> Send:
    """Returns how to send a response with `HEADERS`."""

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return send_guarded


class Guard:
    """Lets requests through to an application, which sees their path without the token."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        """Args: token: the first part of every path."""
        self._app, self._prefix = app, f"/{token}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        assert scope["type"] == "http", "the server is set to nothing else"
        send_guarded = with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            response = PlainTextResponse(f"{refusal}\n", 403)
            await response(scope, receive, send_guarded)
            return
        path = scope["path"][len(self._prefix) - 1 :]
        inner: MutableMapping[str, Any] = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(inner, receive, send_guarded)

    def _refusal(self, scope: Scope) -> str | None:
        """Says why a request is refused, if it is."""
        headers = Headers(scope=scope)
        foreign = foreign_request(headers, NAMES)
        if foreign is not None:
            return foreign
        if "origin" not in headers and scope["method"] not in _SAFE:
            return "this does not say from which page it comes"
        given = scope["path"][: len(self._prefix)].encode()
        if not secrets.compare_digest(given, self._prefix.encode()):
            return "the address lacks its secret: open the one that `minicpmv chat --web` printed"
        return None

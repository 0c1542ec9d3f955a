"""Who may ask: only the page that this server served, in a browser on this machine.

The server listens on loopback, but any page in any browser here can send requests there. So the
address holds a secret, and Host and Origin must be this server's own: a foreign page cannot post,
and a foreign name that resolves to 127.0.0.1 (DNS rebinding) is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost")
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


class Guard:
    """Lets requests through to an application, which sees their path without the token."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        """Args: token: the first part of every path. port: on which the server listens."""
        self._app, self._prefix = app, f"/{token}/"
        self._hosts = {f"{name}:{port}" for name in NAMES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        assert scope["type"] == "http", "the server is set to nothing else"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

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
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return "this server answers under its own address only"
        origins = headers.getlist("origin")
        if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
            return "this comes from another page"
        if not origins and scope["method"] not in _SAFE:
            return "this does not say from which page it comes"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "this comes from another site"
        given = scope["path"][: len(self._prefix)].encode()
        if not secrets.compare_digest(given, self._prefix.encode()):
            return "the address lacks its secret: open the one that `minicpmv chat --web` printed"
        return None

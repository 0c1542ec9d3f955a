"""Who may ask: no page of another site, and with a key only those who know it."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.serve.errors import ApiError
from runtime.web.guard import foreign_request, with_headers

HEALTH = "/health"  # asked by what watches over the server, without the key


class KeyGuard:
    """Lets requests through to an application."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, key: str | None) -> None:
        """Args: hosts: by which the server may be called; None: any. key: None: none is asked."""
        self._app, self._hosts = app, hosts
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        assert scope["type"] == "http", "the server is set to nothing else"
        send = with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        foreign = foreign_request(headers, self._hosts)
        if foreign is not None:
            return ApiError(403, foreign, code="foreign_request")
        if self._expected is None or scope["path"] == HEALTH:
            return None
        given = headers.get("authorization", "").encode("latin-1")
        if secrets.compare_digest(given, self._expected):
            return None
        return ApiError(
            401,
            "the API key is missing or wrong; expected `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

"""Access control: the origin of a page, and the API key."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.http.guard import foreign_request, guarded
from runtime.serve.cors import Cors
from runtime.serve.errors import ApiError

HEALTH = "/health"  # for monitoring; needs no key


class KeyGuard:
    """Passes allowed requests to an application."""

    def __init__(
        self, app: ASGIApp, *, names: Collection[str] | None, key: str | None, cors: Cors
    ) -> None:
        """Guards an application.

        Args:
            app: answers the requests.
            names: host names that the server accepts; None: any.
            key: API key that clients must send; None: no key is required.
            cors: other sites' pages that may send requests.
        """
        self._app, self._names, self._cors = app, names, cors
        self._expected = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        assert scope["type"] == "http", "the server is configured for HTTP only"
        headers = Headers(scope=scope)
        send = guarded(self._cors.with_headers(headers, send))
        foreign = foreign_request(headers, self._names, self._cors.origins)
        if foreign is not None:
            refusal: ApiError | None = ApiError(403, foreign, code="foreign_request")
        elif self._cors.is_preflight(scope["method"], headers):  # it cannot carry the key
            await self._cors.preflight(headers)(scope, receive, send)
            return
        else:
            refusal = self._refusal(scope["path"], headers)
        await (self._app if refusal is None else refusal.response())(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._expected is None or path == HEALTH:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = secrets.compare_digest(given.strip().encode("latin-1"), self._expected)
        if is_right and scheme.lower() == "bearer":
            return None
        return ApiError(
            401,
            "the API key is missing or wrong; expected `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

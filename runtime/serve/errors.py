"""Errors in OpenAI's format: a status, and a JSON body that describes the error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from runtime.engine_client.process import EngineDiedError
from runtime.engine_client.protocol import ErrorCode
from runtime.web.failures import BUSY, NO_SPACE, UNKNOWN, error_code

ENGINE_DIED = "engine_died"
_RETRY_SECONDS = 1
_WRONG, _BROKEN = "invalid_request_error", "server_error"
_STATUS: Mapping[str, int] = {
    ErrorCode.PROMPT_TOO_LONG: 400,
    ErrorCode.INVALID_TEXT: 400,
    ErrorCode.INVALID_PICTURE: 400,
    ErrorCode.INVALID_REQUEST: 400,
    UNKNOWN: 500,
    ErrorCode.OUT_OF_MEMORY: 503,
    NO_SPACE: 503,
    BUSY: 429,
}


class ApiError(Exception):
    """A request that is refused or has failed."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Args: code: for programs. param: the field of the request."""
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    def to_json(self) -> dict[str, Any]:
        """Returns the body, which can also be sent as an event of a stream."""
        kind = _WRONG if self.status < 500 else _BROKEN
        message, param = _encodable(str(self)), self.param and _encodable(self.param)
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> Response:
        """Returns the response."""
        return json_response(self.to_json(), self.status, self.headers)


def queue_full(message: str) -> ApiError:
    """Returns the error for a client that should retry later."""
    headers = {"Retry-After": str(_RETRY_SECONDS)}
    return ApiError(429, f"{message}; try again later", code="queue_full", headers=headers)


def json_text(value: Any) -> str:
    """Returns JSON in ASCII.

    Some clients end a line, and with it an event, at U+2028 or U+0085; and no encoding has the
    lone surrogates that JSON may bring along.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response of JSON."""
    return Response(json_text(value), status, headers, media_type="application/json")


def _encodable(text: str) -> str:
    """Escapes lone surrogates, which clients could not print."""
    return text.encode("utf-8", "backslashreplace").decode()


def api_error(error: BaseException) -> ApiError:
    """Maps an error of the model, or a bug of this program, to an API error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineDiedError):  # the next request starts it again
        return ApiError(503, str(error), code=ENGINE_DIED)
    code = error_code(error)
    if code == ErrorCode.INTERNAL:
        return ApiError(500, "internal error of minicpmv; see its log", code=code)
    return ApiError(_STATUS.get(code, 500), str(error), code=code)

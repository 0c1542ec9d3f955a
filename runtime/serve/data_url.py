"""Pictures in a request: data URLs (RFC 2397), as clients make them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from runtime.inputs.base64_text import base64_bytes
from runtime.serve.errors import ApiError
from runtime.serve.fields import unsupported, wrong

PICTURE_LIMIT = 32 << 20  # bytes of a picture's file
_START = re.compile(r"\s*data:[^,]{0,200}?;\s*base64\s*,", re.IGNORECASE)


def read_url(value: Any, where: str) -> str:
    """Returns the address of a picture.

    Args:
        value: of the field `image_url`: an object, or just the address.
        where: position of the part in the request.

    Raises:
        ApiError: it is missing, or one that this server would have to fetch.
    """
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise wrong(f"{where}.image_url", 'expected {"url": "data:image/…;base64,…"}')
    if not _START.match(url):
        raise unsupported(
            f"{where}.image_url.url",
            f"is {url[:40]!r}; this server fetches nothing: send data:image/…;base64,…",
        )
    return url


def read_detail(value: Any, where: str) -> bool:
    """Returns whether a low detail is asked for: the overview of the picture alone.

    Args: as those of `read_url`.

    Raises:
        ApiError: it is no detail.
    """
    detail = value.get("detail") if isinstance(value, dict) else None
    if detail not in (None, "auto", "low", "high"):
        raise wrong(f"{where}.image_url.detail", f"is {detail!r:.40}; expected auto, low or high")
    return detail == "low"


def picture_of(url: str, where: str) -> bytes:
    """Returns the file that an address holds; its bytes tell the format.

    Raises:
        ApiError: it is no base64, or larger than `PICTURE_LIMIT`.
    """
    match = _START.match(url)
    assert match is not None, "it was checked"
    data = url[match.end() :]
    if "%" in data:  # percent-encoded
        data = unquote(data)
    try:
        content = base64_bytes(data)
    except ValueError as error:
        raise ApiError(
            400, f"{where}: the picture is no base64: {error}", code="invalid_picture", param=where
        ) from error
    if len(content) > PICTURE_LIMIT:
        raise ApiError(
            413, f"{where}: the picture is larger than {PICTURE_LIMIT >> 20} MiB",
            code="picture_too_large", param=where,
        )  # fmt: skip
    return content

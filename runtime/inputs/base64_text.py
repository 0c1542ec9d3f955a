"""Base64 as people have it: wrapped, with the alphabet for addresses, without padding."""

from __future__ import annotations

import base64
import binascii

_FOR_ADDRESSES = str.maketrans("-_", "+/")


def base64_bytes(text: str) -> bytes:
    """Decodes base64.

    White space is left out, wherever it stands; `-` and `_` are what `+` and `/` are; the padding
    may be missing.

    Raises:
        ValueError: something else is in it, or its end is.
    """
    plain = "".join(text.split()).translate(_FOR_ADDRESSES).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error

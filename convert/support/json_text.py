"""JSON text that any stream can take, and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r"  # JSON's whitespace, except the line feed


def json_text(value: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    """Returns a value as JSON; it is ASCII with escapes if the encoding lacks a character of it.

    A file name may hold bytes that do not decode, and a terminal may be limited to ASCII.

    Args:
        value: anything that `json` can encode.
        indent: spaces per level; None: one line.
        encoding: that of the destination.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def json_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, each with its number, counted from 1.

    Only a line feed ends a line: JSON strings may hold U+0085, U+2028 and U+2029 unescaped, where
    `str.splitlines` would split.

    Args:
        content: of a file; a byte-order mark at its start is skipped.
    """
    lines = content.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    for number, line in enumerate(lines, 1):
        stripped = line.strip(_BLANKS)
        if stripped:
            yield number, stripped

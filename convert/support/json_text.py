"""JSON as text: values that any stream can hold, and lines of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r"  # JSON's own, but for the line feed


def json_text(value: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    """Returns a value as JSON: characters as they are, or escaped where they cannot be encoded.

    A file's name may hold bytes that are no text, and a terminal may know ASCII only.

    Args:
        value: what JSON can hold.
        indent: blanks before each level; None: all in one line.
        encoding: of where it is written.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def json_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, each with its number, the first is 1.

    Only a line feed ends a line. JSON lets texts hold U+0085, U+2028 and U+2029 as they are, where
    `str.splitlines` would cut them in two.

    Args:
        content: a file's; a byte-order mark at its start is no part of the first line.
    """
    lines = content.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    for number, line in enumerate(lines, 1):
        stripped = line.strip(_BLANKS)
        if stripped:
            yield number, stripped

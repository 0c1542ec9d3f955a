"""Strict reading of JSON from the user: the standard only, and numbers that a float64 can hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from convert.support.regular_file import read_regular

JSON_LIMIT = 64 * 2**20  # bytes of a file; the real model's manifest takes a quarter of a MiB
_DIGITS = 300  # of an integer; a float64 cannot hold many more


def load_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: it does not exist, is not a regular file, or is larger than `limit` bytes.
        ValueError: see `parse_json`.
    """
    return parse_json(read_regular(path, limit))


def parse_json(content: bytes | str, *, lone_surrogates: bool = False) -> Any:
    """Parses JSON.

    Args:
        content: UTF-8, with or without a byte-order mark.
        lone_surrogates: accepts strings that are not valid Unicode, for a caller that reports
            them itself.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, a duplicate key, NaN, infinity, a number
            beyond float64, or a string that is not valid Unicode.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        if "\\u" in text and not lone_surrogates:  # the only way to write a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"not valid Unicode: a string holds the lone surrogate {half!a}"
        ) from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the duplicate key {name!a:.40}")
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:  # Python's own limit is 4,300, with another message
        raise ValueError(f"a number of {len(text):,} digits is out of range")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is out of range")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")

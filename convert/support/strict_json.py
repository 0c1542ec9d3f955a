"""JSON from outside: what the standard has, with numbers that a program can count with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from convert.support.regular_file import read_regular

JSON_LIMIT = 64 * 2**20  # bytes of a file; the real model's manifest has a quarter of a MiB
_DIGITS = 300  # of a whole number: one more than a float64 can take is refused anyway


def load_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """Reads a file of JSON in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: it is not there, no regular file, or larger than `limit` bytes.
        ValueError: see `parse_json`.
    """
    return parse_json(read_regular(path, limit))


def parse_json(content: bytes | str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, NaN, infinity, a number that no
            float64 holds, or a text that is no valid Unicode.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_refuse_constant
        )
        if "\\u" in text:  # only so can half of a UTF-16 pair be spelled
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"no valid Unicode: a text holds the lone surrogate {half!a}") from error
    return value


def _integer(text: str) -> int:
    if len(text) > _DIGITS:  # Python itself would refuse from 4,300 on, with words of its own
        raise ValueError(f"a number of {len(text):,} digits is out of range")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is out of range")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")

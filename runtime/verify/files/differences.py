"""Where two JSON values differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 3  # differences that a reader wants to see


def differences(found: Any, expected: Any, where: str) -> Iterator[str]:
    """Yields every difference: `sets.beam.num_beams is 3; expected 5`.

    Args:
        found: a value of JSON.
        expected: what it should be.
        where: by which it is called; empty at the top of a file.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in {**expected, **found}:
            at = f"{where}.{key}" if where else str(key)
            if key not in found:
                yield f"{at} is missing; expected {_shown(expected[key])}"
            elif key not in expected:
                yield f"{at} is {_shown(found[key])}; expected none"
            else:
                yield from differences(found[key], expected[key], at)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            yield f"{where or 'it'} has {len(found)} entries; expected {len(expected)}"
        for i, pair in enumerate(zip(found, expected, strict=False)):
            yield from differences(*pair, f"{where}[{i}]")
    elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
        yield f"{where or 'it'} is {_shown(found)}; expected {_shown(expected)}"


def listed(found: list[str]) -> str:
    """Returns differences as one text; the first of many."""
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return "an object" if isinstance(value, Mapping) else "a list"
    return f"{value!r:.80}"

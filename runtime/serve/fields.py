"""Request fields that this server does not implement: which it ignores, and which it refuses.

A field is ignored only if it cannot change the answer; all others are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from convert.checkpoint.config import CONFIGS
from convert.support.strict_json import load_json
from runtime.serve.errors import ApiError

_TABLE = load_json(CONFIGS / "openai_fields.json")  # the app's API reads it, too
# Ignored, whatever their value: they do not influence an answer.
IGNORED = frozenset(_TABLE["ignored"])
# Accepted if they ask for what this server does anyway; null and empty values always do.
NEUTRAL: Mapping[str, Sequence[Any]] = _TABLE["neutral"]


def check_names(given: Mapping[str, Any], ours: Collection[str], prefix: str = "") -> None:
    """Checks the fields that this server does not use.

    Args:
        given: of a request, or of an object in it; null counts as missing.
        ours: names of those that are read elsewhere.
        prefix: of the object's name.

    Raises:
        ApiError: a field would change the answer, or is unknown.
    """
    for key, value in given.items():
        name = prefix + key
        if key in ours or name in IGNORED:
            continue
        neutral = NEUTRAL.get(name)
        if neutral is None:
            raise unsupported(f"{name:.80}", "is not supported")
        if _is_empty(value) or any(_is_same(value, one) for one in neutral):
            continue
        expected = " or ".join(map(repr, neutral)) or "none"
        raise unsupported(name, f"is {value!r:.80}; this server supports only {expected}")


def wrong(param: str | None, what: str) -> ApiError:
    """Returns the error for an invalid value."""
    return ApiError(400, f"{param}: {what}" if param else what, code="invalid_value", param=param)


def unsupported(param: str, what: str) -> ApiError:
    """Returns the error for an unsupported field or value."""
    return ApiError(400, f"{param} {what}", code="unsupported_parameter", param=param)


def _is_empty(value: Any) -> bool:
    """Returns whether a value requests nothing, such as a bias of 0 for some tokens."""
    if isinstance(value, dict):
        return all(_is_same(one, 0) for one in value.values())
    return isinstance(value, str | list) and not value


def _is_same(value: Any, one: Any) -> bool:
    return isinstance(value, bool) == isinstance(one, bool) and bool(value == one)

"""Request fields that this server does not implement: which it ignores, and which it refuses.

A field is ignored only if it cannot change the answer; all others are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from runtime.serve.errors import ApiError

# Ignored, whatever their value: they do not influence an answer.
IGNORED = frozenset(
    {
        *("user", "metadata", "safety_identifier", "service_tier", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "prediction"),
        *("stream_options.include_obfuscation",),
    }
)
# Accepted if they ask for what this server does anyway; null and empty values always do.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "store": (False,),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    # Of the older interface for completions, and of other servers.
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "stop_token_ids": (),
    "skip_special_tokens": (True,),
    "mirostat": (0,),
    "stream_options.continuous_usage_stats": (False,),
}


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

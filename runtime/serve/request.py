"""A request for a chat completion, validated in full before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.errors import ConfigError
from runtime.inputs.defaults import GenerationSet
from runtime.inputs.generation_options import GenerationOptions
from runtime.inputs.logprobs import LIMIT as TOP_LOGPROBS_LIMIT
from runtime.inputs.prompt import Message
from runtime.serve.errors import ApiError
from runtime.serve.fields import check_names, wrong
from runtime.serve.messages import read_conversation

STOP_LIMIT = 4  # texts, as OpenAI has it
TOKENS_LIMIT = 1 << 20  # of an answer
OURS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "logprobs",
    "top_logprobs",
)  # fmt: skip
_ANY = -1  # how clients of other servers ask for the default


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What is to be answered, and how."""

    messages: list[Message]
    picture: bytes | None  # a file, not decoded yet
    overview_only: bool  # of a model that cuts pictures
    options: GenerationOptions
    is_stream: bool
    wants_usage: bool  # at the end of a stream


def read_request(raw: Any, model: str, settings: GenerationSet) -> ChatRequest:
    """Checks a request.

    Args:
        raw: its JSON.
        model: the name of the only model.
        settings: default generation settings.

    Raises:
        ApiError: anything that is wrong or not supported.
    """
    if not isinstance(raw, dict):
        raise wrong(None, "the body is no JSON object")
    given = _given(raw)
    check_names(given, OURS)
    asked = given.get("model", model)
    if asked != model:
        raise ApiError(
            404, f"no model {asked!r:.80}; this server has {model!r}", code="model_not_found",
            param="model",
        )  # fmt: skip
    messages, picture, overview_only = read_conversation(given.get("messages"))
    stream_options = given.get("stream_options", {})
    if not isinstance(stream_options, dict):
        raise wrong("stream_options", 'expected {"include_usage": true or false}')
    stream_options = _given(stream_options)
    check_names(stream_options, ("include_usage",), "stream_options.")
    return ChatRequest(
        messages=messages,
        picture=picture,
        overview_only=overview_only,
        options=_options(given, settings),
        is_stream=_flag(given, "stream"),
        wants_usage=_flag(stream_options, "include_usage", "stream_options."),
    )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _options(given: Mapping[str, Any], settings: GenerationSet) -> GenerationOptions:
    chosen = {
        name: _number(given[name], name, low, high)
        for name, low, high in (
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("repetition_penalty", 0, 10),
        )
        if name in given
    }
    if "top_k" in given:  # 0 and -1 mean no limit
        chosen["top_k"] = _number(given["top_k"], "top_k", _ANY, 1 << 30)
        if chosen["top_k"] < 1:
            chosen["top_k"] = None
    # Either leaves only the likeliest token.
    is_greedy = chosen.get("temperature") == 0 or chosen.get("top_p") == 0
    sampling = {} if is_greedy else settings.choose(True, chosen)
    if "repetition_penalty" in chosen:
        sampling["repetition_penalty"] = chosen["repetition_penalty"]
    seed = given.get("seed")
    try:
        return GenerationOptions(
            max_new_tokens=_limit(given, settings),
            seed=None if seed == _ANY else seed,
            stop=_stops(given.get("stop", [])),
            top_logprobs=_top_logprobs(given),
            **sampling,
        )
    except ConfigError as error:
        raise wrong(str(error).partition(" ")[0], str(error).partition(" ")[2]) from error


def _limit(given: Mapping[str, Any], settings: GenerationSet) -> int:
    """Returns after how many tokens an answer ends."""
    names = [
        name for name in ("max_tokens", "max_completion_tokens") if given.get(name, _ANY) != _ANY
    ]
    limits = {_number(given[name], name, 1, TOKENS_LIMIT) for name in names}
    if len(limits) > 1:
        raise wrong("max_tokens", "differs from max_completion_tokens; give one of them")
    return limits.pop() if limits else settings.max_new_tokens


def _top_logprobs(given: Mapping[str, Any]) -> int | None:
    """Returns how many of the likeliest tokens to report; None: no logprobs at all."""
    count: int = _number(given.get("top_logprobs", 0), "top_logprobs", 0, TOP_LOGPROBS_LIMIT)
    if _flag(given, "logprobs"):
        return count
    if count:
        raise wrong("top_logprobs", f"is {count} without `logprobs`: true")
    return None


def _stops(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > STOP_LIMIT:
        raise wrong("stop", f"expected a text, or a list of at most {STOP_LIMIT}")
    return tuple(text for text in texts if text != "")


def _number(value: Any, name: str, low: int, high: int) -> Any:
    is_whole = name not in ("temperature", "top_p", "repetition_penalty")
    if is_whole and isinstance(value, float) and value.is_integer():
        value = int(value)  # some languages have no other numbers
    kinds = (int,) if is_whole else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        kind = "a whole number" if is_whole else "a number"
        raise wrong(name, f"is {value!r:.40}; expected {kind} from {low} to {high}")
    return value


def _flag(given: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise wrong(prefix + name, f"is {value!r:.40}; expected true or false")
    return value

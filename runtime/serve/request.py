"""A chat completion as a client asks for it: checked whole before anything is computed.

What would be ignored silently is refused, but for fields that change no answer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.errors import ConfigError, PromptError
from runtime.defaults import GenerationSet
from runtime.prompt import Message, check_messages, check_question
from runtime.sampling import GenerationOptions
from runtime.serve.errors import ApiError

PICTURE_LIMIT = 32 << 20  # bytes of a picture's file
STOP_LIMIT = 4  # texts, as OpenAI has it
TOKENS_LIMIT = 1 << 20  # of an answer
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w.+=-]+)*;base64,", re.ASCII)
_OURS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop",
)  # fmt: skip
# Of no influence on an answer.
_IGNORED = (
    "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier",
    "parallel_tool_calls",
)  # fmt: skip
# Taken if they ask for nothing but what there is.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "store": (False,),
}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What is to be answered, and how."""

    messages: list[Message]
    picture: bytes | None  # a file, not decoded yet
    options: GenerationOptions
    is_stream: bool
    wants_usage: bool  # at the end of a stream


def read_request(raw: Any, model: str, settings: GenerationSet) -> ChatRequest:
    """Checks a request.

    Args:
        raw: its JSON.
        model: the only model that there is.
        settings: how to generate unless told otherwise.

    Raises:
        ApiError: anything that is wrong or not supported.
    """
    if not isinstance(raw, dict):
        raise _wrong(None, "the body is no JSON object")
    given = {name: value for name, value in raw.items() if value is not None}
    _check_names(given)
    asked = given.get("model", model)
    if asked != model:
        raise ApiError(
            404, f"no model {asked!r:.80} here; there is {model!r}", code="model_not_found",
            param="model",
        )  # fmt: skip
    messages, picture = _conversation(given.get("messages"))
    stream_options = given.get("stream_options", {})
    if not isinstance(stream_options, dict) or stream_options.keys() - {"include_usage"}:
        raise _wrong("stream_options", 'expected {"include_usage": true or false}')
    return ChatRequest(
        messages=messages,
        picture=picture,
        options=_options(given, settings),
        is_stream=_flag(given, "stream"),
        wants_usage=_flag(stream_options, "include_usage"),
    )


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _OURS or name in _IGNORED:
            continue
        neutral = _NEUTRAL.get(name)
        if neutral is None:
            raise _unsupported(f"{name:.80}", "is not supported")
        if not any(value == one for one in neutral):
            expected = " or ".join(map(repr, neutral))
            raise _unsupported(name, f"is {value!r:.80}; this server has only {expected}")


def _options(given: Mapping[str, Any], settings: GenerationSet) -> GenerationOptions:
    limits = [given[key] for key in ("max_tokens", "max_completion_tokens") if key in given]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise _wrong("max_tokens", "differs from max_completion_tokens; give one of them")
    limit = _number(limits[0], "max_tokens", 1, TOKENS_LIMIT) if limits else None
    chosen = {
        name: _number(given[name], name, low, high)
        for name, low, high in (
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("top_k", 1, 1 << 30),
            ("repetition_penalty", 0, 10),
        )
        if name in given
    }
    is_greedy = chosen.get("temperature") == 0
    sampling = {} if is_greedy else settings.choose(True, chosen)
    if "repetition_penalty" in chosen:
        sampling["repetition_penalty"] = chosen["repetition_penalty"]
    try:
        return GenerationOptions(
            max_new_tokens=settings.max_new_tokens if limit is None else limit,
            seed=given.get("seed"),
            stop=_stops(given.get("stop", [])),
            **sampling,
        )
    except ConfigError as error:
        raise _wrong(str(error).partition(" ")[0], str(error).partition(" ")[2]) from error


def _stops(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > STOP_LIMIT:
        raise _wrong("stop", f"expected a text, or a list of at most {STOP_LIMIT}")
    return tuple(texts)


def _conversation(turns: Any) -> tuple[list[Message], bytes | None]:
    """Returns what the model hears: it sees one picture, before the first question.

    So it begins with the turn that brought the latest picture, as `chat --web` does.
    """
    if not isinstance(turns, list):
        raise _wrong("messages", "expected a list")
    read = [_turn(turn, f"messages[{i}]") for i, turn in enumerate(turns)]
    first = max((i for i, (_, picture) in enumerate(read) if picture is not None), default=0)
    messages = [message for message, _ in read]
    try:
        check_messages(messages)
        check_question(messages[first:])
    except PromptError as error:
        raise ApiError(400, str(error), code="invalid_messages", param="messages") from error
    url = read[first][1]
    return messages[first:], None if url is None else _picture(url, f"messages[{first}]")


def _turn(turn: Any, where: str) -> tuple[Message, str | None]:
    """Returns a turn, and the address of its picture."""
    if not isinstance(turn, dict):
        raise _wrong(where, "expected an object")
    role = turn.get("role")
    if role not in ("user", "assistant"):
        raise _unsupported(
            f"{where}.role", f"is {role!r:.40}; the model knows `user` and `assistant` only"
        )
    for name, value in turn.items():  # clients send back what they got, empty fields included
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise _unsupported(f"{where}.{name:.80}", "is not supported")
    content = turn.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}, None
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "expected a text or a list of parts")
    texts: list[str] = []
    url = None
    for i, part in enumerate(content):
        at = f"{where}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and role == "user":
            if url is not None:
                raise _unsupported(at, "is a second picture; the model sees one in a turn")
            url = _url(part.get("image_url"), at)
        else:
            raise _unsupported(at, f"is of type {kind!r:.40}; expected text, or a user's image_url")
    return {"role": role, "content": "\n".join(texts)}, url


def _url(value: Any, where: str) -> str:
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str):
        raise _wrong(f"{where}.image_url", 'expected {"url": "data:image/…;base64,…"}')
    if not _DATA_URL.match(url):
        raise _unsupported(
            f"{where}.image_url.url",
            f"is {url[:40]!r}; this server fetches nothing: send data:image/…;base64,…",
        )
    return url


def _picture(url: str, where: str) -> bytes:
    match = _DATA_URL.match(url)
    assert match is not None, "it was checked"
    data = url[match.end() :]
    if len(data) > PICTURE_LIMIT * 4 // 3 + 4:
        raise ApiError(
            413, f"{where}: the picture is larger than {PICTURE_LIMIT >> 20} MiB",
            code="picture_too_large", param=where,
        )  # fmt: skip
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"{where}: the picture is no base64: {error}", code="invalid_picture", param=where
        ) from error


def _number(value: Any, name: str, low: int, high: int) -> Any:
    kinds = (int,) if name in ("max_tokens", "top_k") else (int, float)
    if type(value) not in kinds or not low <= value <= high:
        kind = "a whole number" if kinds == (int,) else "a number"
        raise _wrong(name, f"is {value!r:.40}; expected {kind} from {low} to {high}")
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, f"is {value!r:.40}; expected true or false")
    return value


def _wrong(param: str | None, what: str) -> ApiError:
    return ApiError(400, f"{param}: {what}" if param else what, code="invalid_value", param=param)


def _unsupported(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}", code="unsupported_parameter", param=param)

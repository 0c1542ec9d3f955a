"""The messages of a request: the conversation for the model, and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.inputs.prompt import Message, PromptError, check_messages, check_question
from runtime.serve.data_url import picture_of, read_detail, read_url
from runtime.serve.errors import ApiError
from runtime.serve.fields import unsupported, wrong

_INSTRUCTIONS = ("system", "developer")
_ROLES = ("user", "assistant", *_INSTRUCTIONS)


@dataclass(frozen=True)
class _Shown:
    """A picture that a turn has."""

    url: str
    is_low: bool  # the detail that is asked for


def read_conversation(turns: Any) -> tuple[list[Message], bytes | None, bool]:
    """Returns the conversation for the model, its one picture, and whether its overview is enough.

    The picture precedes the first question. So the conversation begins with the turn that has the
    latest picture, as in `chat --web`. The model knows no system turns: their texts, all of them in
    order, are put before the first question of this conversation, each on its own lines.

    Raises:
        ApiError: it is not a conversation, or has content that the model does not support.
    """
    if not isinstance(turns, list):
        raise wrong("messages", "expected a list")
    read = [_turn(turn, f"messages[{i}]") for i, turn in enumerate(turns)]
    instructions = [m["content"] for m, _, _ in read if m["role"] in _INSTRUCTIONS]
    spoken = [turn for turn in read if turn[0]["role"] not in _INSTRUCTIONS]
    first = max((i for i, turn in enumerate(spoken) if turn[1] is not None), default=0)
    messages = [message for message, _, _ in spoken]
    try:
        check_messages(messages)
        check_question(messages[first:])  # the questions, without the instructions
        conversation = _instructed(instructions, messages[first:])
        check_question(conversation)
    except PromptError as error:
        raise ApiError(400, str(error), code="invalid_messages", param="messages") from error
    _, shown, where = spoken[first]
    if shown is None:
        return conversation, None, False
    return conversation, picture_of(shown.url, where), shown.is_low


def _instructed(instructions: list[str], messages: list[Message]) -> list[Message]:
    texts = [text for text in instructions if text.strip()]
    first, *rest = messages
    content = "\n".join([*texts, first["content"]])
    return [{"role": first["role"], "content": content}, *rest]


def _turn(turn: Any, where: str) -> tuple[Message, _Shown | None, str]:
    """Returns a turn, its picture, and where it stands."""
    if not isinstance(turn, dict):
        raise wrong(where, "expected an object")
    role = turn.get("role")
    if role not in _ROLES:
        raise unsupported(f"{where}.role", f"is {role!r:.40}; expected one of {', '.join(_ROLES)}")
    for name, value in turn.items():  # clients return what they received, empty fields included
        if name not in ("role", "content", "name") and value not in (None, [], {}, "", False):
            raise unsupported(f"{where}.{name:.80}", "is not supported")
    content = turn.get("content")
    if content is None and role != "user":  # an empty answer
        content = ""
    if isinstance(content, str):
        return {"role": role, "content": content}, None, where
    if not isinstance(content, list):
        raise wrong(f"{where}.content", "expected a text or a list of parts")
    texts: list[str] = []
    shown = None
    for i, part in enumerate(content):
        at = f"{where}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and role == "user":
            if shown is not None:
                raise unsupported(at, "is a second picture; the model sees one in a turn")
            image = part.get("image_url")
            shown = _Shown(read_url(image, at), read_detail(image, at))
        else:
            raise unsupported(at, f"is of type {kind!r:.40}; expected text, or a user's image_url")
    return {"role": role, "content": "\n".join(texts)}, shown, where

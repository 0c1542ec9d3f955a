"""An answer in OpenAI's words: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from runtime.protocol import Stop
from runtime.session import Reply

END = "data: [DONE]\n\n"
_REASONS: Mapping[str, str] = {
    Stop.EOS: "stop",
    Stop.STOP_STRING: "stop",
    Stop.LENGTH: "length",
}


class Answer:
    """One answer's frame: its id, its time, its model."""

    def __init__(self, model: str) -> None:
        self._about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, reply: Reply) -> dict[str, Any]:
        """Returns a chat completion."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _REASONS[reply.statistics.stop],
        }
        return self._about | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(reply),
        }

    def first(self) -> str:
        """Returns the event that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> str:
        """Returns the event that brings a piece of the text."""
        return self._chunk({"content": text}, None)

    def last(self, reply: Reply) -> str:
        """Returns the event that says why the answer ended."""
        return self._chunk({}, _REASONS[reply.statistics.stop])

    def usage(self, reply: Reply) -> str:
        """Returns the event that says what it took."""
        return event(
            self._about | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)}
        )

    def _chunk(self, delta: dict[str, str], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._about | {"object": "chat.completion.chunk", "choices": [choice]})


def event(fields: Mapping[str, Any]) -> str:
    """Returns an event of a stream."""
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


def _usage(reply: Reply) -> dict[str, Any]:
    statistics = reply.statistics
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "completion_tokens": statistics.generated_tokens,
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": statistics.reused_tokens},
    }

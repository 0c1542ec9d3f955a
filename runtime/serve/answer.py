"""An answer in OpenAI's format: whole, or as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.engine_client.protocol import Stop
from runtime.inputs.logprobs import StepLogprobs
from runtime.serve.errors import json_text
from runtime.serve.logprobs import TokenTexts
from runtime.sessions.session import Reply

END = "data: [DONE]\n\n"
_REASONS: Mapping[str, str] = {
    Stop.EOS: "stop",
    Stop.STOP_STRING: "stop",
    Stop.LENGTH: "length",
}


class CompletionFrame:
    """The fields around one answer: its id, time and model."""

    def __init__(self, model: str, texts: TokenTexts | None) -> None:
        """Args: texts: of tokens; None: their logprobs are not asked for."""
        self._texts = texts
        self._about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, reply: Reply, steps: Sequence[StepLogprobs]) -> dict[str, Any]:
        """Returns a chat completion."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(steps),
            "finish_reason": _REASONS[reply.statistics.stop],
        }
        return self._about | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(reply),
        }

    def first(self) -> str:
        """Returns the event that begins a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, steps: Sequence[StepLogprobs]) -> str:
        """Returns the event with a piece of the text and the tokens that it came from."""
        return self._chunk({"content": text}, logprobs=self._logprobs(steps))

    def last(self, reply: Reply) -> str:
        """Returns the event with the reason why the answer ended."""
        return self._chunk({}, reason=_REASONS[reply.statistics.stop])

    def usage(self, reply: Reply) -> str:
        """Returns the event with the token counts."""
        return event(
            self._about | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)}
        )

    def _chunk(
        self,
        delta: dict[str, str],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self._about | {"object": "chat.completion.chunk", "choices": [choice]})

    def _logprobs(self, steps: Sequence[StepLogprobs]) -> dict[str, Any] | None:
        if self._texts is None:
            return None
        return {"content": list(map(self._texts.step, steps)), "refusal": None}


def event(fields: Mapping[str, Any]) -> str:
    """Returns an event of a stream."""
    return f"data: {json_text(fields)}\n\n"


def _usage(reply: Reply) -> dict[str, Any]:
    statistics = reply.statistics
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "completion_tokens": statistics.generated_tokens,
        "total_tokens": statistics.prompt_tokens + statistics.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": statistics.reused_tokens},
    }

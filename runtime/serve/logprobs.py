"""Tokens and their log-probabilities in OpenAI's format."""

from __future__ import annotations

import re
from typing import Any

from convert.checkpoint.tokenizer_file import SPACE
from runtime.inputs.logprobs import StepLogprobs, TokenLogprob
from runtime.inputs.prompt import BOS_ID, EOS_ID, UNKNOWN_ID, Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NO_TEXT = (UNKNOWN_ID, BOS_ID, EOS_ID)


class TokenTexts:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def step(self, step: StepLogprobs) -> dict[str, Any]:
        """Returns an entry of `logprobs.content`."""
        return self._entry(step.chosen) | {"top_logprobs": list(map(self._entry, step.top))}

    def _entry(self, token: TokenLogprob) -> dict[str, Any]:
        """Returns a token; its bytes are null if it has no text, such as EOS.

        A token may be one byte of a character that the vocabulary lacks.
        """
        (piece,) = self._tokenizer.pieces([token.id])
        byte = _BYTE.fullmatch(piece)
        if byte is not None:
            value = int(byte.group(1), 16)
            text, spelled = f"bytes:\\x{value:02x}", [value]
        else:
            text = piece.replace(SPACE, " ")
            spelled = list(text.encode())
        has_text = token.id not in _NO_TEXT and token.id < self._tokenizer.vocab_size
        return {
            "token": text,
            "logprob": token.logprob,
            "bytes": spelled if has_text else None,
        }
